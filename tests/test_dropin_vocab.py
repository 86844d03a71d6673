"What fastai's vocabularies promise, of ours; and that vocabularies as fastai makes them are cheap."
import time

import numpy as np
import torch
from fastai.data.transforms import CategoryMap

from collab_pretrained.ids.vocab import Vocab
from collab_pretrained.models.embeddings import EmbeddingDotBias

def fastest(f, n=5):
    def seconds():
        start = time.perf_counter()
        f()
        return time.perf_counter() - start
    return min(seconds() for _ in range(n))


def test_numpy_ids_cost_as_much_as_pythons():
    ids = np.random.default_rng(0).permutation(200_000)
    # was 100 times
    assert fastest(lambda: Vocab(['#na#', *map(np.int64, ids)])) < 6*fastest(lambda: Vocab(['#na#', *ids.tolist()]))


def test_indexing_is_that_of_a_category_map():
    theirs = CategoryMap([30, 10, 20], add_na=True)
    ours = Vocab.of(theirs)
    masks = [True, False, True, False], torch.tensor([False, True, True, False]), np.array([True]*4)
    for some in (2, -1, [2, 0], torch.tensor([1, 3]), np.array([1, 3]), torch.tensor(2), slice(1, 3), *masks):
        assert ours[some] == theirs[some] and type(ours[some]) in (int, type(theirs[some])), some
    assert ours == theirs and theirs == ours and ours == list(theirs)
    assert ours.o2i['unknown'] == theirs.o2i['unknown'] == 0 and 'unknown' not in ours.o2i


def test_rows_by_id_make_a_vocabulary_of_fastai_once(monkeypatch):
    theirs = CategoryMap([30, 10, 20], add_na=True)
    model = EmbeddingDotBias.from_classes(4, {'user': theirs, 'item': theirs})
    first = model.weight([20])
    monkeypatch.setattr(Vocab, 'of', None)
    assert torch.equal(model.weight([20]), first)
