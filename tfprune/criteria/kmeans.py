"""Filters in clusters of similar ones, each of which keeps some.

Source: CNN-Pruning-Engine (github.com/MIC-Laboratory/CNN-Pruning-Engine): K-L1norm, K-Taylor and K-Distance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from tfprune.criteria.base import GroupView, Unscored, register_criterion
from tfprune.criteria.features import Feature
from tfprune.criteria.magnitude import L1
from tfprune.criteria.taylor import Taylor
from tfprune.errors import PlanError


@dataclass(frozen=True, kw_only=True)
class Clustered:
    """The base: filters are clustered with k-means; an order follows from the clusters and an importance.

    Each cluster keeps at least one filter, and loses as large a part of its filters as the others: whatever the budget,
    the lowest scores are the least important ones of each cluster, in proportion to its size. Only when one filter a
    cluster is left are these taken, too. Scores are places in that order, in [0, 2): they do not depend on the weights'
    scale, and do not compare with those of other groups.

    Attributes:
        clusters: how many; by default the square root of half the group's width. A group that has fewer different
            filters gets fewer.
        variance: which part of the variance the principal components that are clustered hold; 1 clusters the filters
            themselves.
        seed: of the first centres.

    Raises:
        PlanError: one of them is out of range; on scoring, more clusters than channels.
    """

    clusters: int | None = None
    variance: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.clusters is not None and (isinstance(self.clusters, bool) or int(self.clusters) != self.clusters):
            raise PlanError(f"{name}'s clusters are a whole number, and {self.clusters!r} came")
        if self.clusters is not None and self.clusters < 1:
            raise PlanError(f"{name} needs at least 1 cluster, and {self.clusters} came")
        if not 0 < self.variance <= 1:
            raise PlanError(f"{name}'s variance is a fraction in (0, 1], and {self.variance!r} came")

    def __call__(self, view: GroupView) -> NDArray[np.float64]:
        # Those of OpenMP, too.
        with threadpool_limits(1):
            points = components(self.filters(view), self.variance)
            clusters, centres = self._clustered(view, points)
        return self.order(self.importance(view, points, clusters, centres), clusters)

    def filters(self, view: GroupView) -> NDArray:
        """What is clustered, shape (width, values): the filters of every layer that writes the group."""
        found = [view.matrix(member) for member in view.members("write")]
        if not found:
            raise Unscored(f"{type(self).__name__} needs a layer whose weights write the channels")
        return np.concatenate(found, axis=1)

    def importance(self, view: GroupView, points: NDArray, clusters: NDArray, centres: NDArray) -> NDArray:
        """What ranks the filters of a cluster, shape (width,)."""
        raise NotImplementedError

    def order(self, importance: NDArray, clusters: NDArray) -> NDArray:
        """Scores from an importance and each channel's cluster."""
        rank, size = _ranks(importance, clusters)
        return np.where(rank < size - 1, (rank + 0.5) / size, 1 + _fraction(importance))

    def _clustered(self, view: GroupView, points: NDArray) -> tuple[NDArray, NDArray]:
        """(cluster of each channel, centres)."""
        from sklearn.cluster import KMeans

        count = round((view.width / 2) ** 0.5) if self.clusters is None else int(self.clusters)
        if count > view.width:
            raise PlanError(
                f"{type(self).__name__} was asked for {count} clusters, and group {view.group.name!r} has only "
                f"{view.width} channels"
            )
        count = min(max(1, count), len(np.unique(points, axis=0)))
        means = KMeans(count, n_init=1, random_state=self.seed).fit(points)
        return means.labels_, means.cluster_centers_


@dataclass(frozen=True, kw_only=True)
class KMeansL1(Clustered):
    """K-L1norm: clusters of the filters' principal components, ranked inside by the filters' L1 norm."""

    def importance(self, view: GroupView, points: NDArray, clusters: NDArray, centres: NDArray) -> NDArray:
        return L1(roles=("write",))(view)


@dataclass(frozen=True, kw_only=True)
class KMeansTaylor(Clustered):
    """K-Taylor: clusters of the filters, ranked inside by Taylor scores of their feature maps, see `Taylor`."""

    variance: float = 1.0

    @property
    def needs(self) -> tuple[Feature, ...]:
        return Taylor().needs

    def importance(self, view: GroupView, points: NDArray, clusters: NDArray, centres: NDArray) -> NDArray:
        return Taylor()(view)


@dataclass(frozen=True, kw_only=True)
class KMeansDistance(Clustered):
    """K-Distance: the distance to the own cluster's centre; what is near it has others like it.

    Clustered are the filters with BatchNormalization's scale. The farthest filter of each cluster is its last.
    """

    def filters(self, view: GroupView) -> NDArray:
        scales = [view.matrix(member) for member in view.members("scale")]
        return np.concatenate([super().filters(view), *scales], axis=1)

    def importance(self, view: GroupView, points: NDArray, clusters: NDArray, centres: NDArray) -> NDArray:
        return np.linalg.norm(points - centres[clusters], axis=1)

    def order(self, importance: NDArray, clusters: NDArray) -> NDArray:
        rank, size = _ranks(importance, clusters)
        return _fraction(importance) + (rank == size - 1)


def components(rows: NDArray, variance: float) -> NDArray:
    """The first principal components that hold this part of the variance: shape (rows, components).

    From the rows' products with each other: filters have many more weights than there are filters.
    """
    if variance == 1:
        return rows
    rows = rows - rows.mean(axis=0)
    values, vectors = np.linalg.eigh(rows @ rows.T)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    if not values.sum():
        return rows[:, :1]
    count = int(np.searchsorted(np.cumsum(values), variance * values.sum())) + 1
    return vectors[:, :count] * np.sqrt(values[:count])


def _ranks(importance: NDArray, clusters: NDArray) -> tuple[NDArray, NDArray]:
    """(place in its cluster, from the least important; size of the cluster) of each channel."""
    order = np.lexsort((importance, clusters))
    sizes = np.bincount(clusters)
    starts = np.cumsum(sizes) - sizes
    rank = np.empty(len(clusters), int)
    rank[order] = np.arange(len(clusters)) - starts[clusters[order]]
    return rank, sizes[clusters]


def _fraction(importance: NDArray) -> NDArray:
    """In [0, 1), in the same order."""
    return importance / (np.nextafter(importance.max(initial=0), np.inf) or 1)


register_criterion("kmeans_l1")(KMeansL1())
register_criterion("kmeans_taylor")(KMeansTaylor())
register_criterion("kmeans_distance")(KMeansDistance())
