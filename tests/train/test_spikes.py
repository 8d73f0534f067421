"""Loss spikes: seen where something went wrong, and not where single rows are merely hard."""

from __future__ import annotations

import json
import random

import pytest

from tunekit.train.spikes import LASTING, SpikeWatch


def told(losses, watch=None):
    """The steps, from 1, at which the watch spoke."""
    watch = watch or SpikeWatch()
    return [step for step, loss in enumerate(losses, 1) if watch.see(loss) is not None]


def noise(count, seed=0, center=2.0):
    """Losses of single rows: a long tail upwards."""
    dice = random.Random(seed)
    return [center * dice.lognormvariate(0, 0.4) for _ in range(count)]


@pytest.fixture(scope="module")
def trained(session_of, plan_of):
    """The losses that a real run logs, step by step."""

    def losses(**sets):
        trainer = session_of(plan_of(train__save_every="never", **sets))[1]
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    return losses


SPREAD = [1.0, 3.0, 2.0, 1.5, 2.5, 1.0, 3.0, 2.0, 2.5]  # median 2; deviations 0 0 .5 .5 .5 1 1 1 1, so MAD .5
EVEN = [2.0] * 8
TAIL = [2.0] * 4 + [5.0] + [2.0] * 5


@pytest.mark.parametrize(
    ("before", "threshold"),
    [
        (SPREAD, 2 + 10 * 1.4826 * 0.5),
        (EVEN, 2 + 10 * 0.1 * 2),
        (TAIL, 2 + 3 * (5 - 2)),  # three times as far as the farthest
        ([0.01] * 20, 0.01 + 1.0),  # at least a nat
        ([2.0] * 7, 2 + 8.0),  # of the first losses little can be said: eight nats
        ([20.0] * 7, 20 + 10 * 0.2 * 20),
        ([-1.0] * 20, -1 + 1.0),  # the loss of some methods is negative
    ],
)
def test_the_threshold_by_hand(before, threshold):
    assert told([*before, threshold - 0.001]) == []
    assert told([*before, threshold + 0.001]) == [len(before) + 1]


def test_the_spike_tells_its_figures():
    watch = SpikeWatch()
    assert told(SPREAD, watch) == []
    spike = watch.see(200.0)
    assert (spike.loss, spike.baseline, spike.factor, spike.lasting) == (200.0, 2.0, 100.0, 0)
    assert spike.words() == "the loss rose from about 2 to 200 (100 times as much)"


@pytest.mark.parametrize("batch", [1, 8])
def test_a_learning_rate_of_ten_is_seen_within_twenty_steps(batch, trained, note):
    losses = trained(train__max_steps=20, train__batch_size=batch, train__learning_rate=10)
    first, *_ = told(losses)
    note(f"lr 10, batch {batch}: told at step {first}, loss {losses[0]:.1f} to {losses[first - 1]:.0f}")
    assert first <= 20


def test_ordinary_training_is_not_warned_of_but_any_loss_times_a_hundred_is(trained, note):
    """Batches of one row, on few rows until the model knows them: the noisiest that fine-tuning is."""
    seen = planted = 0
    for rate, steps in ((1e-2, 120), (3e-3, 240), (1e-3, 40)):
        losses = trained(train__max_steps=steps, train__batch_size=1, train__learning_rate=rate)
        assert len(losses) == steps and told(losses) == [], rate
        seen += steps
        planted += check_planted(losses)
    note(f"talks: {seen} steps, none told; {planted} planted spikes, all told")
    assert seen >= 200


@pytest.mark.parametrize(
    ("file", "rate", "steps"),
    [("chat/lf_glaive_toolcall_en_demo.first240.json", 1e-2, 60), ("math/gsm8k_train.jsonl", 1e-2, 80)],
)
def test_real_data_is_not_warned_of(file, rate, steps, trained, shared_data, note):
    source = [{"path": str(shared_data / file), "limit": 240}]
    losses = trained(data__train=source, data__max_drop_rate=1.0, train__max_steps=steps, train__batch_size=1,
                     train__learning_rate=rate)  # fmt: skip
    assert len(losses) == steps and told(losses) == []
    note(f"{file}: {steps} steps, none told; {check_planted(losses)} planted spikes, all told")


def check_planted(losses):
    """Every loss but the first, taken a hundredfold where it comes, is told; returns how many."""
    watch = SpikeWatch()
    watch.see(losses[0])
    for loss in losses[1:]:
        if loss > 0.1:
            assert SpikeWatch.restore(watch.state()).see(100 * loss) is not None, loss
        watch.see(loss)
    return sum(loss > 0.1 for loss in losses[1:])


@pytest.mark.parametrize("seed", range(20))
def test_a_long_tail_is_no_spike_and_a_hundredfold_loss_is(seed):
    losses = noise(300, seed)
    assert told(losses) == []
    check_planted(losses)


def test_rows_known_by_heart_may_vary_fivefold():
    dice = random.Random(1)
    assert told([*(1e-4 * 5 ** dice.uniform(-1, 1) for _ in range(200)), 0.02, 1e-4, 0.9]) == []
    assert told([1e-4] * 50 + [8.0]) == [51]


def test_an_easy_row_may_come_first():
    assert told([0.2, 4.1, 2.0, 6.3]) == []
    assert told([0.2, 200.0]) == [2]


def test_a_spike_does_not_hide_the_next():
    losses = noise(60)
    losses[30] = losses[33] = losses[36] = 500.0
    watch = SpikeWatch()
    assert told(losses, watch) == [31, 34, 37]
    assert 500.0 not in watch.state()["losses"]


def test_a_loss_that_stays_high_is_told_twice_and_then_taken_as_it_is():
    watch = SpikeWatch()
    assert told(noise(40), watch) == []
    high = noise(60, center=300.0)
    spikes = [spike for loss in high if (spike := watch.see(loss)) is not None]
    assert [spike.lasting for spike in spikes] == [0, LASTING]
    assert "for 10 steps" in spikes[1].words()
    assert told([30_000.0], watch) == [1]


def test_nine_spikes_in_a_row_and_one_good_loss_are_no_change():
    watch = SpikeWatch()
    assert told(noise(40), watch) == []
    assert told([300.0] * (LASTING - 1) + [2.0] + [300.0] * (LASTING - 1), watch) == [1, LASTING + 1]


def test_losses_that_are_not_finite_are_passed_over():
    watch = SpikeWatch()
    told(noise(20), watch)
    before = watch.state()
    assert told([float("nan"), float("inf"), -float("inf")], watch) == []
    assert watch.state() == before


def test_only_the_window_is_remembered():
    watch = SpikeWatch(window=10)
    assert told([50.0] * 10 + [2.0] * 10 + [9.0], watch) == [21]
    assert watch.state() == {"window": 10, "losses": [2.0] * 10, "spikes": [9.0]}


def test_a_watch_restored_anywhere_speaks_as_the_uninterrupted_one():
    losses = [*noise(40), 400.0, 2.0, *noise(10, 1), *noise(30, 2, center=500.0), 90_000.0]
    whole = SpikeWatch()
    expected = [whole.see(loss) for loss in losses]
    assert [spike.lasting for spike in expected if spike] == [0, 0, LASTING, 0]
    for cut in range(len(losses)):
        watch = SpikeWatch()
        first = [watch.see(loss) for loss in losses[:cut]]
        resumed = SpikeWatch.restore(json.loads(json.dumps(watch.state())))
        assert first + [resumed.see(loss) for loss in losses[cut:]] == expected
        assert resumed.state() == whole.state()
