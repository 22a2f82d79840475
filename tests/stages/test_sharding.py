"""Tests how missing items are dealt out: complete groups, smaller shards at the end, repeats, division."""

from collections.abc import Callable

from lgclip.stages.sharding import MAX_POISONED, MAX_TRIES, Failure, Job, ShardQueue

BOOM = Failure("RuntimeError", "boom")


def all_shards(queue: ShardQueue, workers: list[int]) -> list[Job]:
    """Returns all shards of a queue, dealt to the workers in turns."""
    jobs: list[Job] = []
    while job := queue.take(workers[len(jobs) % len(workers)], workers):
        jobs.append(job)
    return jobs


def solve(queue: ShardQueue, fails: Callable[[list[int]], bool], workers: list[int]) -> tuple[list[int], int]:
    """Computes a queue; returns the computed items and the number of failures."""
    done: list[int] = []
    failures = 0
    turn = 0
    while not queue.is_given_up:
        worker = workers[turn % len(workers)]
        turn += 1
        job = queue.take(worker, workers)
        if job is None:
            if not queue.waiting:
                break
            continue
        if fails(job.shard.places):
            failures += 1
            queue.fail(job, worker, BOOM)
        else:
            done += job.shard.places
    return done, failures


def test_shards_are_complete_groups_that_get_smaller() -> None:
    missing = [list(range(100, 1095)), list(range(7))]
    jobs = all_shards(ShardQueue(missing, [10, 4], 128), [0, 1])
    sizes = [len(job.shard.places) for job in jobs if job.shard.loader == 0]
    assert [place for job in jobs if job.shard.loader == 0 for place in job.shard.places] == missing[0]
    assert [job.shard for job in jobs if job.shard.loader == 1] == [(1, [0, 1, 2, 3]), (1, [4, 5, 6])]
    assert sizes[0] == 120
    assert sizes == sorted(sizes, reverse=True)
    assert all(size % 10 == 0 for size in sizes[:-1])
    assert sizes[-1] == 5


def test_group_is_larger_than_a_shard_may_be() -> None:
    jobs = all_shards(ShardQueue([list(range(70))], [32], 8), [0])
    assert [len(job.shard.places) for job in jobs] == [32, 32, 6]


def test_waiting_counts_what_is_not_dealt() -> None:
    queue = ShardQueue([list(range(10)), list(range(6))], [5, 2], 5)
    assert (queue.waiting, queue.shards_left()) == (16, 5)
    job = queue.take(0, [0])
    assert job is not None
    assert (queue.waiting, queue.shards_left()) == (11, 4)
    queue.put_back(job)
    assert (queue.waiting, queue.shards_left()) == (16, 5)
    assert queue.take(0, [0]) is job
    assert not job.is_repeated


def test_failed_shard_goes_to_another_worker() -> None:
    queue = ShardQueue([list(range(4))], [4], 4)
    job = queue.take(0, [0, 1])
    assert job is not None
    queue.fail(job, 0, BOOM)
    assert queue.take(0, [0, 1]) is None
    assert queue.take(1, [0, 1]) is job
    assert job.is_repeated
    queue.fail(job, 1, BOOM)
    assert queue.take(0, [0, 1]) is job, "it has failed on both, so any will do"


def test_single_item_fails_three_times() -> None:
    queue = ShardQueue([[5]], [1], 1)
    assert solve(queue, lambda places: True, [0, 1]) == ([], MAX_TRIES)
    assert queue.poisoned == {(0, 5): BOOM}


def test_failing_item_is_found_and_all_others_are_computed() -> None:
    queue = ShardQueue([list(range(640))], [4], 64)
    done, failures = solve(queue, lambda places: bool({77, 300} & set(places)), [0, 1, 2])
    assert sorted(done) == [place for place in range(640) if place not in (77, 300)]
    assert len(done) == len(set(done))
    assert queue.poisoned.keys() == {(0, 77), (0, 300)}
    # Three for each shard, then one for each half with the item: at most 32, 16, 8, 4, 2, 1.
    assert 2 * MAX_TRIES < failures <= 2 * (MAX_TRIES + 6)


def test_common_cause_ends_the_stage() -> None:
    queue = ShardQueue([list(range(100_000))], [1], 512)
    done, failures = solve(queue, lambda places: True, [0, 1])
    assert done == []
    assert len(queue.poisoned) == MAX_POISONED
    assert failures < 200


def test_lost_worker_is_no_failure_of_its_shard() -> None:
    queue = ShardQueue([list(range(8))], [4], 8)
    for worker in range(MAX_TRIES - 1):
        job = queue.take(worker, [worker])
        assert job is not None
        queue.lose(job, worker, BOOM)
        assert job.failures == 0
    assert solve(queue, lambda places: False, [5])[0] == list(range(8))


def test_item_that_kills_every_worker_is_found() -> None:
    queue = ShardQueue([list(range(8))], [4], 8)
    done: list[int] = []
    losses = 0
    while job := queue.take(losses, [losses]):
        if 6 in job.shard.places:
            queue.lose(job, losses, BOOM)
            losses += 1
        else:
            done += job.shard.places
    assert sorted(done) == [0, 1, 2, 3, 4, 5, 7]
    assert queue.poisoned == {(0, 6): BOOM}
