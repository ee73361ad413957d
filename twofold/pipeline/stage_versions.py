"""Versions of the stages: part of every stage's digest, so that no stage made by older code is used again.

Raise the version of a stage when its code gives another result for the same inputs: other values, other rows, other
files. A changed layout of a log message or a faster way to the same result needs no new version. Later stages follow by
themselves, since the digest of a stage is an input of the next. `tests/pipeline/test_stage_versions.py` fails when the
results change and the version does not.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

STAGE_VERSIONS: Final[Mapping[str, int]] = MappingProxyType(
    {
        # One comment per raise, the newest first: the version, and what the stage does differently since.
        # 6: a view is whole although watch_s is FLOAT and length_s DOUBLE; with item_columns and user_columns, items
        # and users of events that are not taken are left out.
        # 5: NULL and \N of CSV and ids of empty text are NULL; years of two digits are read, JSON as other text.
        # 4: min_negatives counts what is not positive, whatever the negative history holds.
        # 3: rows say whether they are relevant; dates and texts are read as times.
        # 2: LEAST and GREATEST of NULL, NaN and infinities are NULL; last_n is ordered by all columns.
        "prepare": 6,
        # 7: features.json says which ids have a row of their own; their collisions are counted.
        # 6: features.json holds the number of hash buckets of ids.
        # 5: examples say whether they are relevant.
        # 4: values that several items share come first in a vocabulary.
        # 3: categories and counter keys of any type are found; negative numbers are refused on a log scale.
        # 2: hours and weekdays follow the offset of a time zone at each moment, not one offset for all.
        "dataset": 7,
        # 23: item-kNN has one more constant, the asymmetry of its powers of popularity.
        # 22: the logit adjustment reads shares of the whole window; items without positives stay negatives.
        # 21: a learned temperature below its limit is raised to it.
        # 20: peers that are served read the items of a history where towers read shared rows.
        # 19: several processes draw the same negatives where items have upload times.
        # 18: with last_n, kind best compares and serves no popularity of the last days.
        # 17: sums of item neighbors are over the root of the number of likes; an item has 100, which may be undamped.
        # 16: weights of the sum of kind best have a normal prior, which counts where the validation users are few.
        # 15: kind best fits a sum of all models; sums of item-item models are over the root of the number of likes.
        # 14: tables that sequences read are lazy from 40 times the rows that a step usually reads of them.
        # 13: recency priors of peers may reach back 90 days.
        # 12: kind best may add two peers to the towers, and does so where one alone is hardly better.
        # 11: the vectors of iALS lie on the axes of YᵀY; as a peer it may have 256 dimensions.
        # 9: the constant neighbors of item-kNN has its American spelling.
        # 8: item-kNN has two more constants; kind best may add its exact scores; additions/, not repeats.json.
        # 7: logs of more than 2^20 rows are shuffled in blocks.
        # 6: kind best may add how often a user saw an item, where items that were seen are recommended again.
        # 5: kind best may serve the sum of the towers and a peer, and refits it only with train.refit.
        # 4: with patience, the learning rate is constant after the first epoch.
        # 3: batches of one day; 512 uniform negatives; one correction for all softmax losses.
        # 2: an unknown id and the values that its item alone has are unknown together.
        "train": 23,
        # 6: the retriever's scores include its additions for histories.
        # 5: the retriever's score has a weight in the order, chosen on the validation window.
        # 4: the ranker may read ranks in the lists of several sources; its recipe says which.
        # 3: an unknown id and the values that its item alone has are unknown together.
        # 2: LEAST and GREATEST of NULL are NULL in a formula.
        "train/ranker": 6,
        # 24: a pin by condition and a quota leave an item that is pinned by its id to its place.
        # 23: item-kNN has one more constant, the asymmetry of its powers of popularity.
        # 22: log Q of a log with fewer positives than a batch is that of training; items with one vector tie on every
        # processor.
        # 21: the ranker reads the retriever's scores with its additions for histories.
        # 20: the evaluation setup says whether seen items are ranked, and has digests of ranked items and impressions.
        # 19: new items with last_n and their chance; names of slices by users; texts where seen items stay.
        # 18: item-item peers with a recency prior are sums over the root of the number of likes.
        # 17: recent popularity and recency priors may reach back 90 days.
        # 16: iALS as a baseline may have 256 dimensions.
        # 15: a section on the expected watch time of the lists.
        # 14: iALS has one more constant, the power of the number of likes in its penalty.
        # 13: the constant neighbors of item-kNN has its American spelling.
        # 12: item-kNN has two more constants, for the activity of users and the popularity of items.
        # 11: a section on the sources of candidates; an item that is not found has the rank num_candidates.
        # 10: a section on the rules after ranking.
        # 9: recall on impressions; in-batch hit rates at 20, 100 and 200, none beyond a batch's distinct items.
        # 8: the way from random to perfect is a share of what a perfect order gains, which for MRR is below 1.
        # 7: no metrics at a k that most lists do not reach.
        # 6: baselines with a recency prior, their constants chosen on the validation window.
        # 5: in-batch with log Q, distinct items and a uniform reference; a section on new items.
        # 4: under index.where, the ranker gets the best allowed items, as it is served.
        # 3: values per user of every row; the dates of the window; days of evaluate.windows.
        # 2: intervals by Student's t, clustered by user; groups of few users are not tested; no days by first request.
        "evaluate": 24,
        # 16: the ranker reads the retriever's scores with its additions for histories.
        # 15: sums of item neighbors are over the root of the number of likes.
        # 14: recency priors in fold_in.json may have several numbers of days.
        # 13: a bundle may hold two peers; fold_in.json says how many dimensions are of each.
        # 12: vocabularies of texts are mapped; attributes have age_days wherever the items have uploaded_at.
        # 11: the vectors of iALS lie on the axes of YᵀY.
        # 10: the penalty of a user of iALS may grow with the number of likes.
        # 9: the folder additions/ in place of an entry of context.json.
        # 8: the graph of the ranker takes a rank for each source of candidates, which the bundle holds.
        # 7: products of integers only in catalogues so large that they are faster.
        # 6: the products of a flat index are those of integers, where these are precise enough.
        # 5: the graph of a flat index, item_products.onnx.
        # 4: the bundle holds the addition for items that a user saw.
        # 3: the bundle says whether items that were seen are recommended again.
        # 2: LEAST and GREATEST of NULL are NULL in index.where.
        "index": 16,
        # 2: a pin by condition and a quota leave an item that is pinned by its id to its place.
        "recommend": 2,
        # 10: the probe of new items counts additions for histories; fewer pairs of large batches in the gap.
        # 9: log Q of a log with fewer positives than a batch is that of training.
        # 8: liked items without a group vouch for no group; columns of 64-bit keys have bands on the map.
        # 7: the gap tells items that are described later from vectors that are not those of the model.
        # 6: near pairs of a few kinds of items raise no warning.
        # 5: about ten probes, beside those of popularity and of positives.
        # 4: the probe of new items masks one item at a time.
        # 3: clusters are named in words; the picture of the map has no legend.
        # 2: the gap has a verdict on serving, and corrects batches by log Q.
        "explain": 10,
    }
)
