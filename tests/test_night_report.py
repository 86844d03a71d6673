"The page of a night, opened in headless Chromium."
import json
import re

import pandas as pd
import pytest
from test_docs import CHROMIUM, tab  # noqa: F401  a fixture

from collab_pretrained.serve.report import night_html

pytestmark = pytest.mark.skipif(not CHROMIUM, reason='Chromium is missing (Debian: apt-get install chromium)')

HOSTILE = ('</ol></style><script>document.title="in"; console.error("in")</script>'
           '<img src=x onerror="console.error(1)">&amp;"\'')
CHECKS = [{'name': o, 'ok': o != 'amount', 'seen': f'{o} <b>seen</b>', 'expected': 'more',
           'remedy': 'look, or set `max_x`'} for o in ('ids', 'amount', 'mean')]
FACTS = {'verdict': 'promoted', 'reason': '', 'version': 12, 'when': '2026-03-01T02:00:00.000+00:00',
         'files': [HOSTILE], 'n_ratings': 1200, 'n_repeated': 200, 'n_new': 1000, 'n_new_users': 3, 'n_new_items': 4,
         'seconds': 1.25, 'peak_mb': 512., 'lists': {'k': 3, 'n_users': 50, 'overlap': .9, 'rbo': .8}, 'checks': CHECKS,
         'compared': [{'group': group, 'metric': 'rmse', 'n': n, 'before': .9, 'after': .89, 'low': low, 'high': .005,
                       'floor': floor, 'below': group == 'all'}
                      for group, n, low, floor in (('all', 200, -.02, .95), ('new', 9, None, None))]}


def examples():
    "Lists of ten known and five new users; the lists of tonight lack an item and have another."
    rows = [(u, kind, rank, item + 10*(when == 'after' and rank == 3), 1., when) for u, kind in
            [*((f'{HOSTILE}{k}', 'known') for k in range(10)), *((f'n{k}', 'new') for k in range(5))]
            for when in ('before', 'after') for rank, item in ((1, 5), (2, 7), (3, 9))]
    return pd.DataFrame(rows, columns=['user', 'kind', 'rank', 'item', 'score', 'when'])


def nights():
    return pd.DataFrame({'when': pd.date_range('2026-01-01', periods=40).astype(str), 'metric': 'rmse', 'before': .9,
                         'after': [.8 + k/100 for k in range(40)], 'verdict': ['refused', *['promoted']*39]})


def shown(tab, path, page, width=1280, dark=False):  # noqa: F811
    "What Chromium shows of a page, and what it complains of."
    path.write_text(page, encoding='utf-8')
    tab('Emulation.setDeviceMetricsOverride', width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
    tab('Emulation.setEmulatedMedia', features=[{'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}])
    tab.open(path.as_uri())
    res = tab.run('''({title: document.title, text: document.body.innerText, wide: document.documentElement.scrollWidth,
        users: document.querySelectorAll('.user').length, dots: document.querySelectorAll('circle').length,
        scripts: document.querySelectorAll('script, img, link, iframe').length,
        paper: getComputedStyle(document.body).backgroundColor,
        points: document.querySelector('polyline')?.getAttribute('points').split(' ').length,
        heads: [...document.querySelectorAll('h1, h2')].map(o => o.innerText)})''')
    kinds = 'Runtime.exceptionThrown', 'Log.entryAdded', 'Runtime.consoleAPICalled', 'Network.requestWillBeSent'
    problems = [o for o in tab.events if o.get('method') in kinds]
    tab('Emulation.clearDeviceMetricsOverride')
    assert not problems and res['title'] != 'in' and not res['scripts'], problems
    return res


@pytest.mark.parametrize('width', [1280, 390])
def test_page_shows_all_of_it(tab, tmp_path, width):  # noqa: F811
    facts = {**FACTS, 'checks': [{**o, 'ok': True} for o in CHECKS]}
    text = night_html(facts, examples(), nights(), {5: HOSTILE, 7: 'The Seventh Seal'})
    page = shown(tab, tmp_path/'a.html', text, width)
    assert page['heads'] == ['Promoted: version 12 is served', "Tonight's ratings", 'Both models on the same ratings',
                             'The last 30 nights', 'Lists before and after', '3 of 3 checks passed']
    for o in ('1,200', '0.8900', 'The Seventh Seal 7', HOSTILE, f'User {HOSTILE}3 known', 'User n4 new',
              'worse than its floor, beyond chance: all (0.8900)', '01 March 2026, 02:00 UTC',
              'amount <b>seen</b>', '90%'):
        assert ' '.join(o.split()) in ' '.join(page['text'].split()), o
    assert (page['users'], page['points'], page['dots']) == (15, 30, 4)
    assert page['wide'] <= width


def test_refused_night_begins_with_what_failed(tab, tmp_path):  # noqa: F811
    facts = {k: v for k, v in FACTS.items() if k not in ('compared', 'lists')}
    facts |= {'verdict': 'refused', 'reason': 'amount: x', 'compared': []}
    page = shown(tab, tmp_path/'a.html', night_html(json.loads(json.dumps(facts)), nights=nights()[:25]), dark=True)
    assert page['heads'] == ['Refused: version 12 is still served', '2 of 3 checks passed', "Tonight's ratings",
                             'The last 25 nights']
    assert page['text'].index('look, or set max_x') < page['text'].index('ids <b>seen</b>')
    assert page['dots'] == 1  # the night of these that was refused
    assert max(map(int, re.findall(r'\d+', page['paper']))) < 80


def test_page_of_a_first_night_without_anything():
    facts = {**FACTS, 'version': None, 'compared': [], 'checks': [], 'lists': {}, 'files': []}
    page = night_html(facts, examples()[:0])
    assert 'the model of before is served' in page and '<table' not in page and 'http' not in page.split('</style>')[1]


def test_text_that_utf8_has_no_place_for():
    assert night_html(FACTS, examples(), titles={5: 'a\udfff'}).encode()
