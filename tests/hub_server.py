"""A stand-in for the Hugging Face Hub: as much of its protocol as it takes to create a repository, commit to it and
download from it."""

import base64
import hashlib
import http.server
import json
import os
import re
import tempfile
import threading
from urllib.parse import unquote, urlsplit

TOKEN = 'hf_the_only_token'


class Hub:
    """A server on a free port; `repos` maps a repository's id to its commits, the oldest first, each a dictionary from
    path to bytes."""

    def __init__(self):
        self.repos, self.private, self.objects, self.requests = {}, {}, {}, []
        self.server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), type('Handler', (Handler,), {'hub': self}))
        self.url = f'http://127.0.0.1:{self.server.server_port}'
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def sha(self, repo, n):
        "The name of a commit: a hash of all that is in it."
        content = [(path, hashlib.sha1(raw).hexdigest()) for path, raw in self.repos[repo][n].items()]
        return hashlib.sha1(repr((repo, n, content)).encode()).hexdigest()

    def commit(self, repo, revision):
        "The number of the commit that `revision` names in `repo`; None where there is none."
        names = {self.sha(repo, n): n for n in range(len(self.repos[repo]))}
        return names.get(revision, len(names) - 1 if revision == 'main' else None)


_started = []

def start():
    """The stand-in of this process, empty. huggingface_hub, which reads its settings once, must not have been imported
    before the first call."""
    if not _started:
        hub, home = Hub(), tempfile.TemporaryDirectory()
        os.environ.update(
            HF_ENDPOINT=hub.url,
            HF_HOME=home.name,
            HF_HUB_DISABLE_PROGRESS_BARS='1',
            HF_HUB_DISABLE_XET='1',
            HF_HUB_DISABLE_TELEMETRY='1',
        )
        from huggingface_hub import constants
        assert constants.ENDPOINT == hub.url, 'huggingface_hub was imported before'
        _started.extend([hub, home])
    for o in (_started[0].repos, _started[0].private, _started[0].requests): o.clear()
    return _started[0]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *args): pass

    def answer(self, status, body=b'', **headers):
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for k, v in {'Content-Length': str(len(raw)), 'Content-Type': 'application/json', **headers}.items():
            self.send_header(k.replace('_', '-'), v)
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(raw)

    def error(self, status, code): self.answer(status, {'error': code}, X_Error_Code=code, X_Error_Message=code)

    def handle_any(self):
        path, body = unquote(urlsplit(self.path).path), self.rfile.read(int(self.headers.get('Content-Length') or 0))
        self.hub.requests.append(f'{self.command} {path}')
        may = self.headers.get('Authorization') == f'Bearer {TOKEN}'
        for method, pattern, act in ROUTES:
            if self.command in method and (m := re.fullmatch(pattern, path)):
                if self.command == 'POST' and not may: return self.error(401, 'Unauthorized')
                args = m.groups()
                if args and args[0] not in self.hub.repos or args and self.hub.private.get(args[0]) and not may:
                    return self.error(404, 'RepoNotFound')
                return act(self, body, *args)
        self.error(404, 'NotFound')
    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def create(self, body):
        ask = json.loads(body)
        repo = f"{ask['organization'] or 'me'}/{ask['name']}"
        where = {'url': f'{self.hub.url}/{repo}', 'name': repo, 'id': repo}
        if repo in self.hub.repos: return self.answer(409, {'error': 'You already created this model repo', **where})
        self.hub.repos[repo], self.hub.private[repo] = (
            [{'.gitattributes': b'*.safetensors filter=lfs'}],
            ask.get('visibility') == 'private',
        )
        self.answer(200, where)

    def validate(self, body): self.answer(200, {'errors': [], 'warnings': []})

    def preupload(self, body, repo, revision):
        def mode(path):
            return 'lfs' if path.endswith('.safetensors') else 'regular'

        self.answer(
            200,
            {
                'files': [
                    {'path': o['path'], 'uploadMode': mode(o['path']), 'shouldIgnore': False}
                    for o in json.loads(body)['files']
                ]
            },
        )

    def batch(self, body, repo):
        def upload(oid):
            return {'upload': {'href': f'{self.hub.url}/lfs/{oid}'}}

        self.answer(
            200,
            {'transfer': 'basic', 'objects': [{**o, 'actions': upload(o['oid'])} for o in json.loads(body)['objects']]},
        )

    def put(self, body):
        self.hub.objects[hashlib.sha256(body).hexdigest()] = body
        self.answer(200)

    def add(self, body, repo, revision):
        if self.hub.commit(repo, revision) is None: return self.error(404, 'RevisionNotFound')
        files = dict(self.hub.repos[repo][-1])
        for line in map(json.loads, body.splitlines()):
            value = line['value']
            if line['key'] == 'file': files[value['path']] = base64.b64decode(value['content'])
            if line['key'] == 'lfsFile': files[value['path']] = self.hub.objects[value['oid']]
            if line['key'] == 'deletedFile': del files[value['path']]
        self.hub.repos[repo].append(files)
        sha = self.hub.sha(repo, len(self.hub.repos[repo]) - 1)
        self.answer(200, {'commitUrl': f'{self.hub.url}/{repo}/commit/{sha}', 'commitOid': sha})

    def info(self, body, repo, revision='main'):
        if (n := self.hub.commit(repo, revision)) is None: return self.error(404, 'RevisionNotFound')
        self.answer(
            200,
            {
                'id': repo,
                'modelId': repo,
                'sha': self.hub.sha(repo, n),
                'private': self.hub.private.get(repo, False),
                'tags': [],
                'downloads': 0,
                'likes': 0,
                'siblings': [{'rfilename': o} for o in self.hub.repos[repo][n]],
            },
        )

    def tree(self, body, repo, revision):
        if (n := self.hub.commit(repo, revision)) is None: return self.error(404, 'RevisionNotFound')
        self.answer(
            200,
            [
                {'type': 'file', 'path': k, 'size': len(v), 'oid': hashlib.sha1(v).hexdigest()}
                for k, v in self.hub.repos[repo][n].items()
            ],
        )

    def file(self, body, repo, revision, path):
        if (n := self.hub.commit(repo, revision)) is None: return self.error(404, 'RevisionNotFound')
        if (raw := self.hub.repos[repo][n].get(path)) is None: return self.error(404, 'EntryNotFound')
        self.answer(
            200,
            raw,
            ETag=f'"{hashlib.sha1(raw).hexdigest()}"',
            X_Repo_Commit=self.hub.sha(repo, n),
            Content_Type='application/octet-stream',
        )


REPO = r'([^/]+/[^/]+)'
ROUTES = [
    ('POST', '/api/repos/create', Handler.create),
    ('POST', '/api/validate-yaml', Handler.validate),
    ('POST', f'/api/models/{REPO}/preupload/([^/]+)', Handler.preupload),
    ('POST', f'/{REPO}\\.git/info/lfs/objects/batch', Handler.batch),
    ('PUT', '/lfs/[0-9a-f]+', Handler.put),
    ('POST', f'/api/models/{REPO}/commit/([^/]+)', Handler.add),
    ('GET', f'/api/models/{REPO}', Handler.info),
    ('GET', f'/api/models/{REPO}/revision/(.+)', Handler.info),
    ('GET', f'/api/models/{REPO}/tree/(.+)', Handler.tree),
    ('GET HEAD', f'/{REPO}/resolve/([^/]+)/(.+)', Handler.file),
]
