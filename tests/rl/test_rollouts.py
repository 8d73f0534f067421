"""Rollouts as examples, as tables and as a file, by hand."""

import math

import pytest

from tunekit.rl.rollouts import FILE, Drawn, Rollout, group_of, load_rollouts, means, save_rollouts


def drawn(*ids, reward=0.0, ended=True, parts=None, **numbers):
    return Drawn(list(ids), ended, "".join(map(str, ids)), reward, parts or {}, numbers)


def test_a_rollout_is_a_group():
    rollout = Rollout([5, 6, 7], [9], [drawn(1, 2, old=[0.1, 0.2]), drawn(3, old=[0.3])])
    found = group_of(rollout)
    assert found["input_ids"] == [5, 6, 7, 1, 2, 3]
    assert found["labels"] == [-100, -100, -100, 1, 2, 3]
    assert found["position_ids"] == [0, 1, 2, 3, 4, 3]
    assert found["branches"] == [2, 1] and found["rows"] == [9] and found["length"] == 6
    assert found["numbers"] == {"old": [0.1, 0.2, 0.3]}


def test_a_table_has_each_answers_tokens_in_a_row():
    import torch

    from tunekit.rl.tables import Table

    owner = torch.tensor([2, 0, 2, 0, 3, 0])  # the second answer has no tokens, and answers need not stand in order
    table = Table.of(owner, 5)
    assert table.mask.tolist() == [[True] * 3, [False] * 3, [True, True, False], [True, False, False], [False] * 3]
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], requires_grad=True)
    found = table.of_tokens(values)
    assert found.tolist() == [[2, 4, 6], [0, 0, 0], [1, 3, 0], [5, 0, 0], [0, 0, 0]]
    assert table.rows(found) == [[2, 4, 6], [], [1, 3], [5], []]
    (found * torch.arange(15.0).view(5, 3)).sum().backward()
    assert values.grad.tolist() == [6, 0, 7, 1, 9, 2]


def test_numbers_of_groups_stand_beside_their_tokens():
    """Two groups of two answers and a filler; the numbers of a group lie one after another, right-padded."""
    import torch

    from tunekit.rl.tables import Table

    owner = torch.tensor([0, 0, 1, 3, 4, 4, 4])  # answers of 2 and 1 tokens, a filler, answers of 1 and 3
    table = Table.of(owner, 5)
    given = torch.tensor([[1.0, 2.0, 3.0, -1.0], [-1.0] * 4, [4.0, 5.0, 6.0, 7.0]])
    found = table.of_groups(given, torch.tensor([3, 0, 4]))
    assert found.tolist() == [[1, 2, 0], [3, 0, 0], [0, 0, 0], [4, 0, 0], [5, 6, 7]]


def test_a_batch_of_nothing_has_an_empty_table():
    import torch

    from tunekit.rl.tables import Table, numbers_of

    table = Table.of(torch.zeros(0, dtype=torch.long), 2)
    assert table.mask.shape == (2, 0) and table.rows(table.mask.float()) == [[], []]
    batch = numbers_of([{"numbers": {"old": []}}, {"numbers": {"old": []}}])
    assert batch["old"].shape == (2, 0) and batch["index"].tolist() == [-1, -1]
    assert table.of_groups(batch["old"], torch.tensor([0, 0])).shape == (2, 0)


def test_a_filler_beside_a_group_has_no_numbers():
    from tunekit.rl.tables import numbers_of

    found = numbers_of([{"index": 4, "numbers": {"old": [0.5, 0.25], "values": [1.0, 2.0]}}, {"empty": True}])
    assert found["old"].tolist() == [[0.5, 0.25], [0, 0]] and found["values"].tolist() == [[1, 2], [0, 0]]
    assert found["index"].tolist() == [4, -1] and set(found) == {"index", "old", "values"}


def bits(value):
    """Numbers by their bits, so that nan is itself and -0.0 is not 0.0."""
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, dict):
        return {name: bits(inner) for name, inner in value.items()}
    return [bits(inner) for inner in value] if isinstance(value, list) else value


def test_rollouts_come_back_bit_for_bit(tmp_path):
    import torch

    torch.manual_seed(1)
    small = torch.tensor(1e-40).item()  # below float32's normal numbers
    numbers = {"old": torch.randn(3).tolist(), "values": torch.randn(3).tolist()}
    said = 'a \n"quote" \u2028 \ufffd \x00 '
    rollouts = {
        7: Rollout([1, 2], [3], [
            Drawn([4, 5, 6], True, said, 0.1 + 0.2, {"a": math.nan, "b": -0.0}, numbers),
            Drawn([8], False, "", -math.inf, {"a": 1 / 3, "b": 5e-324}, {"old": [-0.0], "values": [math.nan]}),
        ]),
        2: Rollout([9], [0, 1], [Drawn([1, 1], True, "x", math.nan, {}, {"old": [math.inf, small]})]),
    }  # fmt: skip
    save_rollouts(tmp_path, rollouts)
    found = load_rollouts(tmp_path)
    assert list(found) == [7, 2]
    for index, rollout in rollouts.items():
        assert (found[index].prompt, found[index].rows) == (rollout.prompt, rollout.rows)
        for one, other in zip(found[index].answers, rollout.answers, strict=True):
            assert (one.ids, one.ended, one.text) == (other.ids, other.ended, other.text)
            assert bits([one.reward, one.parts, one.numbers]) == bits([other.reward, other.parts, other.numbers])


def test_no_file_no_rollouts(tmp_path):
    assert load_rollouts(tmp_path) == {}
    save_rollouts(tmp_path, {})
    assert load_rollouts(tmp_path) == {}


def test_a_window_of_many_tokens_can_be_kept(tmp_path):
    """What safetensors holds as a file's header is limited to 100 MB: texts and tokens are not to stand there."""
    text = "x" * 1_000_000
    rollouts = {index: Rollout([1], [index], [drawn(2, old=[0.5])]) for index in range(101)}
    for rollout in rollouts.values():
        rollout.answers[0].text = text
    save_rollouts(tmp_path, rollouts)
    assert (tmp_path / FILE).stat().st_size > 100_000_000
    assert load_rollouts(tmp_path)[100].answers[0].text == text


def test_means_by_hand():
    nan = math.nan
    found = means([
        Rollout([1], [0], [drawn(1, 2, reward=1.0, parts={"a": 1.0, "b": nan, "c": nan}),
                           drawn(1, reward=0.0, ended=False, parts={"a": 0.0, "b": 4.0, "c": nan})]),
        Rollout([1], [1], [drawn(1, 2, 3, reward=2.0, parts={"a": 2.0, "b": 2.0, "c": nan})]),
    ])  # fmt: skip
    assert found == {
        "reward": 1.0, "answer_tokens": 2.0, "ended_share": pytest.approx(2 / 3),
        "reward_spread": pytest.approx(math.sqrt(0.5) / 2), "reward/a": 1.0, "reward/b": 3.0,
    }  # fmt: skip
