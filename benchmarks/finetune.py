"""What the order of parameter groups does to `fine_tune`, on MovieLens 100K.

Usage: python benchmarks/finetune.py [--seeds 2]   (about a minute; one thread) The older 80% of the ratings train a
model for 8 epochs; another starts from it on the newest 20% and is fine-tuned there, one epoch with all groups but the
last frozen and three with all. Each user's latest fifth validates. For each order the best RMSE of six settings, the
mean over seeds."""

import argparse
import os
import warnings

os.environ.setdefault('OMP_NUM_THREADS', '1')
from itertools import product
from statistics import mean

import pandas as pd
from fastai.callback.schedule import fine_tune, fit_one_cycle  # noqa: F401, puts them on the learner
from fastai.data.external import URLs, untar_data
from fastai.metrics import rmse
from fastai.torch_core import set_seed, trainable_params

from collab_pretrained.all import CollabDataLoaders, collab_learner, collab_splitter

ORDERS = {
    'items, users': collab_splitter,
    'users, items': lambda model: collab_splitter(model)[::-1],
    'one group': trainable_params,
}


def loaders(df, **kwargs):
    return CollabDataLoaders.from_df(
        df, user_name='user', item_name='item', rating_name='rating', time_name='time', seed=0, bs=512, **kwargs
    )


def trained(dls, way, *args, seed=0, splitter=collab_splitter, pretrained=False, **kwargs):
    "A learner after `way(*args, **kwargs)`, a method of fastai's."
    set_seed(seed)
    learn = collab_learner(dls, y_range=(0, 5.5), metrics=rmse, pretrained=pretrained, splitter=splitter)
    with learn.no_bar(), learn.no_logging(): getattr(learn, way)(*args, **kwargs)
    return learn

def main(seeds):
    df = pd.read_csv(
        untar_data(URLs.ML_100k) / 'u.data', sep='\t', header=None, names=['user', 'item', 'rating', 'time']
    ).sort_values('time', kind='stable')
    cut = int(.8*len(df))
    old, new = (
        trained(loaders(df[:cut], valid_pct=0.001), 'fit_one_cycle', 8, 5e-3, wd=0.4),
        loaders(df[cut:], splits='user_time'),
    )
    for name, splitter in ORDERS.items():
        def error(lr, mult, splitter=splitter):
            runs = [
                trained(new, 'fine_tune', 3, lr, seed=o, splitter=splitter, pretrained=old, lr_mult=mult)
                for o in range(seeds)
            ]
            return mean(o.recorder.values[-1][-1] for o in runs)
        best, lr, mult = min((error(*o), *o) for o in product((5e-3, 1e-2, 2e-2), (5, 50)))
        print(f'{name:14} {best:.4f}  fine_tune(3, {lr:g}, lr_mult={mult})', flush=True)

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, default=2, help='how many seeds to fine-tune with')
    warnings.simplefilter('ignore')
    main(parser.parse_args().seeds)
