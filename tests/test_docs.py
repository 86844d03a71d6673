"The documentation site as a reader gets it: every page opened in headless Chromium."
import ast
import functools
import html
import http.server
import importlib
import itertools
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
FLAGS = (
    '--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
    '--disable-component-update --disable-sync --remote-debugging-port=0'
).split()
pytestmark = pytest.mark.skipif(
    not CHROMIUM, reason='Chromium is missing: install it (Debian: apt-get install chromium) to check the documentation'
)
pytest.importorskip('smalldocs', reason='smalldocs needs Python 3.11')


class Tab:
    "A tab of Chromium, spoken to over its DevTools protocol."
    def __init__(self, ws):
        self.ws, self.n, self.events = ws, 0, []
        for o in ('Page', 'Runtime', 'Log'): self(f'{o}.enable')

    def read(self):
        self.events.append(json.loads(self.ws.recv(timeout=60)))
        return self.events[-1]

    def __call__(self, method, **params):
        "The result of one command; whatever arrives before it stays in `events`."
        self.n += 1
        self.ws.send(json.dumps(dict(id=self.n, method=method, params=params)))
        while (msg := self.read()).get('id') != self.n: pass
        assert 'error' not in msg, msg
        return msg['result']

    def run(self, js):
        "The value of a JavaScript expression, awaited if it is a promise."
        res = self('Runtime.evaluate', expression=js, awaitPromise=True, returnByValue=True)
        assert 'exceptionDetails' not in res, res
        return res['result'].get('value')

    def open(self, url):
        "Go to a page and wait until all of it has loaded."
        self.events.clear()
        loader = self('Page.navigate', url=url)['loaderId']
        def methods():
            "Of the events since the page is there: a load before it was that of the page before."
            loaders = [o.get('params', {}).get('frame', {}).get('loaderId') for o in self.events]
            return [o.get('method') for o in self.events[loaders.index(loader):]] if loader in loaders else []
        while 'Page.loadEventFired' not in methods(): self.read()


@pytest.fixture(scope='session')
def site(tmp_path_factory, pytestconfig):
    "The site with the outputs that the notebooks hold; with `--nightly` as `make docs` makes it, every notebook run."
    dest = tmp_path_factory.mktemp('docs')/'site'
    command = [sys.executable, ROOT/'tools/build_docs.py', '--engine', 'smalldocs', '--dest', dest]
    subprocess.run(command + ['--saved']*(not pytestconfig.getoption('nightly')), check=True)
    return dest


@pytest.fixture(scope='session')
def address(site):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()


@pytest.fixture(scope='session')
def tab():
    from websockets.sync.client import connect
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        proc = subprocess.Popen([CHROMIUM, *FLAGS, f'--user-data-dir={folder}'], stderr=subprocess.DEVNULL)
        port, deadline = Path(folder)/'DevToolsActivePort', time.monotonic() + 60
        while not (port.exists() and '\n' in port.read_text()):
            assert proc.poll() is None and time.monotonic() < deadline, 'Chromium did not start'
            time.sleep(.1)
        with urllib.request.urlopen(f'http://127.0.0.1:{port.read_text().split()[0]}/json') as f: tabs = json.load(f)
        with connect(next(o['webSocketDebuggerUrl'] for o in tabs if o['type'] == 'page'), max_size=None) as ws:
            yield Tab(ws)
        proc.terminate()
        proc.wait(30)


PAGE = '''({
  text: document.querySelector('main').innerText,
  ids: [...document.querySelectorAll('[id]')].map(o => o.id),
  links: [...document.querySelectorAll('a[href]')].map(o => o.href),
  images: [...document.images].filter(o => !o.complete || !o.naturalWidth).map(o => o.src.slice(0, 80)),
  empty: [...document.querySelectorAll('.entry-params tr')].filter(o => o.cells[3].innerText.trim() === '')
    .map(o => o.closest('.cell').querySelector('h3').innerText + ': ' + o.cells[0].innerText),
  outputs: [...document.querySelectorAll('.cell-output')].map(o => o.innerText).join('\\n'),
  errors: document.querySelectorAll('.cell-output-error, .cell-output-stderr').length,
})'''


@pytest.fixture(scope='session')
def pages(site, address, tab):
    "What every page shows, by its name."
    res = {}
    for p in sorted(site.rglob('*.html')):
        name = p.relative_to(site).as_posix()
        tab.open(address + name)
        res[name] = tab.run(PAGE)
        logged = [o['params'] for o in tab.events if o.get('method') in ('Runtime.exceptionThrown', 'Log.entryAdded')]
        res[name]['problems'] = [
            o for o in logged if address in json.dumps(o)
        ]  # what lies elsewhere may be out of reach
    return res


def test_every_notebook_is_a_page_with_all_its_prose(pages):
    def words(text):
        return re.findall(r'[a-z]{4,}', re.sub(r'\]\(.*?\)|```.*?```|`', '', text, flags=re.DOTALL).lower())
    lost = {}
    for p in sorted((ROOT/'nbs').rglob('[!_]*.ipynb')):
        page = pages[re.sub(r'\d+[a-z]?_', '', p.relative_to(ROOT/'nbs').with_suffix('.html').as_posix())]
        prose = [
            w
            for c in json.loads(p.read_text())['cells']
            if c['cell_type'] == 'markdown' and not ''.join(c['source']).endswith('<!-- aside -->')
            for w in words(''.join(c['source']))
        ]
        missing = Counter(prose) - Counter(words(page['text']))
        if missing: lost[p.name] = missing
    assert not lost
    assert not {k: v['problems'] for k, v in pages.items() if v['problems']}


def test_asides_are_about_code_that_is_not_shown():
    for path in sorted((ROOT/'nbs').rglob('*.ipynb')):
        cells = [(o['cell_type'], ''.join(o['source'])) for o in json.loads(path.read_text())['cells']]
        for (kind, text), (_, code) in itertools.pairwise(cells):
            if kind != 'markdown' or not text.endswith('<!-- aside -->'): continue
            public = re.search(r'^#\| export\n(?:.*\n)*(?:def|class) [^_]', code)
            assert code.startswith('#|') and not public, (path.name, text)


def test_no_broken_link(pages, address, site):
    broken = []
    for name, page in pages.items():
        for link in page['links']:
            url, anchor = urldefrag(link)
            if not url.startswith(address): continue
            target = unquote(url.removeprefix(address)) or 'index.html'
            if target not in pages and not (site/target).is_file(): broken.append((name, link))
            elif anchor and unquote(anchor) not in pages[target]['ids']: broken.append((name, link))
    assert not broken


def test_pictures_show(pages):
    assert not {k: v['images'] for k, v in pages.items() if v['images']}


def test_every_parameter_is_described(pages):
    assert not {k: v['empty'] for k, v in pages.items() if v['empty']}


def internal_methods():
    "'Class.method' of the cells that nbdev exports without an entry (`#| exporti`)."
    for path in (ROOT/'nbs').glob('*.ipynb'):
        for source in (''.join(o['source']) for o in json.loads(path.read_text())['cells']):
            if not source.startswith('#| exporti\n'): continue
            for node in ast.parse(source).body:
                if isinstance(node, ast.ClassDef): yield from (f'{node.name}.{o.name}' for o in node.body
                                                               if isinstance(o, ast.FunctionDef))
                is_patch = isinstance(node, ast.FunctionDef) and node.decorator_list and node.args.args
                if is_patch and (of := node.args.args[0].annotation): yield f'{ast.unparse(of)}.{node.name}'


def test_every_exported_name_has_an_entry(pages):
    from collab_pretrained._modidx import d
    from collab_pretrained.learner.core import METHODS
    missing, internal = [], {*internal_methods()}
    assert not internal & {f'CollabLearner.{o}' for o in METHODS}
    for module, names in d['syms'].items():
        mod = importlib.import_module(module)
        for name, (where, _) in names.items():
            (page, anchor), parts = where.split('#'), name.removeprefix(module + '.').split('.')
            if any(o[0] == '_' for o in parts): continue
            documented = (
                parts[0] in mod.__all__
                if len(parts) == 1
                else vars(getattr(mod, parts[0], object)).get(parts[1]).__doc__
            )
            is_public = documented and '.'.join(parts) not in internal
            if is_public and anchor not in pages[page]['ids']: missing.append(name)
    assert not missing


# The last one is a bare line of the recorder
UNTIDY = re.compile(r".*(?:Traceback \(|Warning:|/root/|/home/|/tmp/|\[\d+, .*'\d\d:\d\d'\]).*")


def test_no_error_or_warning_among_the_outputs(pages):
    assert UNTIDY.search("text\n[0, 0.88, None, '00:00']\n")
    found = {k: UNTIDY.findall(v['outputs']) for k, v in pages.items()}
    assert not {k: v for k, v in found.items() if v}
    assert not [k for k, v in pages.items() if v['errors']]


SEARCH = '''new Promise(done => {
    const box = document.querySelector('#quarto-search input'), query = QUERY;
    document.querySelector('.smalldocs-search-results').innerHTML = '';
    box.focus(); box.value = query; box.dispatchEvent(new Event('input', {bubbles: true}));
    const look = n => { const hits = [...document.querySelectorAll('#quarto-search a[href]')].map(o => o.href);
        hits.length || !n ? done(hits) : setTimeout(look, 50, n - 1) };
    look(100);
})'''


@pytest.fixture
def search(address, tab):
    "Where the results of the site's search lead to, as pages and anchors, the best first."
    tab.open(address + 'index.html')
    return lambda query: [
        o.removeprefix(address) for o in tab.run(SEARCH.replace('QUERY', json.dumps(query)))
    ]


def test_search_finds_a_name(search):
    assert 'weights.match.html#match_embeds' in search('match_embeds')


QUESTIONS = {
    'new users tonight': 'new_and_gone', 'new items': 'new_and_gone', 'delete a user': 'new_and_gone',
    'an item without ratings from its features': 'new_and_gone',
    'clicks instead of ratings': 'data', 'my own vectors': 'data', "continue with the optimizer's state": 'data',
    'Hugging Face Hub': 'data', 'evaluate honestly': 'evaluate_and_tune', 'tune hyperparameters': 'evaluate_and_tune',
    'top 10 per user every night': 'serve', 'business rules (allow and exclude lists)': 'serve',
    'export to a vector index': 'serve', 'serving and latency': 'serve', 'run as a scheduled job': 'nightly_job',
    'GPU and several GPUs': 'gpus', 'multi GPU': 'gpus',
}


def test_search_finds_questions(search):
    found = {o: search(o)[:3] for o in QUESTIONS}
    wrong = {
        o: hits
        for o, hits in found.items()
        if not any(hit.startswith(f'howto/{QUESTIONS[o]}.html') for hit in hits)
    }
    assert not wrong


def test_search_finds_a_page_by_its_summary(search):
    assert 'glossary.html' in search('The terms of this documentation')[0]


def test_long_comments_stand_above_their_lines():
    sys.path.insert(0, str(ROOT/'tools'))
    from build_docs import comments_above
    comment = '# ' + 'a'*100
    assert comments_above(f'if x:\n    y = 1  {comment}\nz = 2  # b') == f'if x:\n    {comment}\n    y = 1\nz = 2  # b'


def test_code_fits_a_page(site):
    long = {
        p.name: line
        for p in site.rglob('*.html')
        for code in re.findall(r'<code class="sourceCode python">(.*?)</code>', p.read_text(), flags=re.DOTALL)
        for line in html.unescape(re.sub('<[^>]+>', '', code)).split('\n')
        if len(line) > 104 and not re.search('["\']', line)  # a text can't be broken
    }
    assert not long
