"""A step of PPO, GRPO and RLOO against plain torch: padded rows, log_softmax, the formulas written out once more."""

import policy_for_tests as policies
import pytest

LAYOUT = {"rollout_steps": 2, "passes": 2, "beta": 0.3, "clip_low": 0.1, "clip_high": 0.15}
CASES = {
    "grpo": {**LAYOUT, "kl": "k3"},
    "grpo at 0.7": {**LAYOUT, "kl": "k3", "temperature": 0.7, "scale": "batch", "entropy_coef": 0.01},
    "rloo": {**LAYOUT, "missing_end_penalty": 0.4},
    "ppo": {**LAYOUT, "value_coef": 0.7, "value_clip": 0.05, "gamma": 0.98, "generations": 2, "value_model": "shared"},
    "ppo, rewards whitened": {
        **LAYOUT, "kl": "k2", "whiten_rewards": True, "generations": 3, "temperature": 0.9, "value_model": "shared"
    },
}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Seven prompts: two batches of 4 and 3."""
    return policies.write_prompts(tmp_path_factory.mktemp("prompts"), 7)


@pytest.fixture(scope="module")
def sharp(tmp_path_factory):
    return policies.write_model(tmp_path_factory.mktemp("sharp"))


class Seen:
    """What a trainer's steps were made of: weights before each, its prompts, the gradients that came of it."""

    def __init__(self, trainer):
        from transformers import TrainerCallback

        self.weights, self.indices, self.grads, self.rollouts = [], [], [], []
        seen, given = self, trainer.get_batch_samples

        def get_batch_samples(*args):
            samples, count = given(*args)
            seen.weights.append({n: p.detach().clone() for n, p in trainer.model.named_parameters()})
            seen.indices.append([i for batch in samples for i in batch["index"].tolist() if i >= 0])
            seen.rollouts.append(trainer.rollouts)
            return samples, count

        class Grads(TrainerCallback):
            def on_pre_optimizer_step(self, args, state, control, **_):
                trained = [(n, p) for n, p in trainer.model.named_parameters() if p.requires_grad]
                seen.grads.append({n: p.grad.clone() for n, p in trained})

        trainer.get_batch_samples = get_batch_samples
        trainer.add_callback(Grads())


def trained(ready_of, plan):
    """A trainer that has gone its way, what was seen of it, and its log."""
    import torch

    _, trainer = ready_of(plan)
    if plan.method == "ppo":  # values that say something
        torch.manual_seed(1)
        torch.nn.init.normal_(trainer.model.value_head.weight, std=0.1)
    seen = Seen(trainer)
    trainer.train()
    return trainer, seen, [line for line in trainer.state.log_history if "loss" in line]


def by_hand(model, head, rollouts, indices, temperature):
    """Log-probabilities, entropies and values (S, T) of the answers of some prompts, and where there are tokens."""
    import torch

    answers = [(rollouts[i].prompt, drawn.ids) for i in indices for drawn in rollouts[i].answers]
    width, most = max(len(p) + len(a) for p, a in answers), max(len(a) for _, a in answers)
    ids = torch.tensor([p + a + [0] * (width - len(p) - len(a)) for p, a in answers])
    found = model(input_ids=ids, output_hidden_states=True)
    table = (found.logits / temperature).log_softmax(-1)
    before = torch.tensor([[min(len(p) - 1 + t, width - 1) for t in range(most)] for p, _ in answers])
    mask = torch.tensor([[t < len(a) for t in range(most)] for _, a in answers])
    targets = torch.tensor([a + [0] * (most - len(a)) for _, a in answers])
    rows = torch.arange(len(answers))[:, None]
    chosen = table[rows, before]  # (S, T, V)
    logps = chosen.gather(-1, targets[..., None])[..., 0].where(mask, 0.0)
    entropy = -(chosen.exp() * chosen).sum(-1).where(mask, 0.0).detach()
    states = found.hidden_states[-1][rows, before]
    values = None if head is None else torch.nn.functional.linear(states, *head)[..., 0].where(mask, 0.0)
    return logps, entropy, values, mask


def kl(kind, logps, reference):
    import torch

    apart = logps - reference
    return {"k1": apart, "k2": apart**2 / 2, "k3": torch.exp(-apart) - 1 + apart}[kind]


def learnt_from(method, block, rollouts, model, head):
    """Advantages, and returns of values, of a window (dicts by prompt of (answers, tokens)), before any step on it."""
    import torch

    order, found = sorted(rollouts), {}
    temperature = block["temperature"]
    with torch.no_grad():
        old, _, values, mask = by_hand(model, head, rollouts, order, temperature)
    scores = torch.tensor([drawn.reward for i in order for drawn in rollouts[i].answers])
    count = block["generations"]
    advantages, returns = torch.zeros_like(old), torch.zeros_like(old)
    if method == "ppo":
        rewards = torch.zeros_like(old)
        for s, size in enumerate(mask.sum(1).tolist()):
            rewards[s, size - 1] += scores[s]  # the KL is 0: nothing has been learnt yet
        if block.get("whiten_rewards"):
            rewards = (rewards / (rewards[mask].var() + 1e-8).sqrt()).where(mask, 0.0)
            mean = rewards[mask].mean()  # whitening keeps the mean that was there
            raw = torch.zeros_like(old)
            for s, size in enumerate(mask.sum(1).tolist()):
                raw[s, size - 1] += scores[s]
            rewards = (rewards - mean + raw[mask].mean()).where(mask, 0.0)
        for s, size in enumerate(mask.sum(1).tolist()):
            after = running = 0.0
            for t in reversed(range(size)):
                error = rewards[s, t] + block.get("gamma", 1.0) * after - values[s, t]
                running = error + block.get("gamma", 1.0) * 0.95 * running
                advantages[s, t], after = running, values[s, t]
        returns = (advantages + values).where(mask, 0.0)
        inside = advantages[mask]
        advantages = ((advantages - inside.mean()) / (inside.var() + 1e-8).sqrt()).where(mask, 0.0)
    else:
        groups = scores.view(-1, count)
        if method == "grpo":
            spread = scores.std() if block.get("scale") == "batch" else groups.std(1, keepdim=True)
            each = (groups - groups.mean(1, keepdim=True)) / (spread + 1e-4)
        else:
            each = groups - (groups.sum(1, keepdim=True) - groups) / (count - 1)
        advantages = each.reshape(-1, 1).expand_as(old).where(mask, 0.0)
    for at, index in enumerate(order):
        rows = slice(at * count, (at + 1) * count)
        found[index] = [part if part is None else part[rows] for part in (old, advantages, returns, values)]
    return found


def loss_of(method, block, window, indices, now, drawn_tokens):
    """The loss of a step, and the share of its tokens whose ratio was clipped."""
    import torch

    logps, entropy, values, mask = now
    width = mask.shape[1]
    old, advantages, returns, told = (
        None if window[indices[0]][part] is None else torch.cat([window[i][part] for i in indices])[:, :width]
        for part in range(4)
    )
    apart = (logps - old).where(mask, 0.0)
    if method == "rloo":
        apart = apart.sum(1, keepdim=True)
    ratio = apart.exp()
    held = ratio.clamp(1 - block["clip_low"], 1 + block["clip_high"])
    clipped = (held * advantages < ratio * advantages) & mask
    tokens = -torch.min(ratio * advantages, held * advantages)
    if method == "grpo":
        tokens = tokens + block["beta"] * kl("k3", logps, window["reference"][tuple(indices)][:, :width])
    if block.get("entropy_coef"):
        weight = torch.exp(logps.detach() - old) * (logps.detach() + entropy)
        tokens = tokens + block["entropy_coef"] * weight * logps
    tokens = tokens.where(mask, 0.0)
    if method == "grpo":
        return tokens.sum() / drawn_tokens, clipped
    if method == "rloo":
        return (tokens.sum(1) / mask.sum(1)).mean(), clipped
    held = told + (values - told).clamp(-block.get("value_clip", 0.2), block.get("value_clip", 0.2))
    errors = torch.max((values - returns) ** 2, (held - returns) ** 2).where(mask, 0.0) / 2
    return (tokens.sum() + block.get("value_coef", 0.1) * errors.sum()) / mask.sum(), clipped


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_are_those_of_plain_torch(case, plan_of, prompts, sharp, ready_of, note):
    """Four steps on one window: the second of each pass is 3 prompts; the second pass is clipped."""
    import torch
    from transformers import AutoModelForCausalLM

    method = case.split()[0].strip(",")
    block = policies.BLOCK | CASES[case]
    plan = policies.policy_plan(
        plan_of, prompts, method, block=CASES[case], model__name=sharp, train__max_steps=4, train__max_grad_norm=1e6,
        train__learning_rate=2e-3,
    )  # fmt: skip
    _, seen, lines = trained(ready_of, plan)
    for first in (0, 2):
        assert sorted(seen.indices[first] + seen.indices[first + 1]) == [*range(7)]
    model = AutoModelForCausalLM.from_pretrained(sharp, dtype=torch.float32).eval()
    heads = [
        (w["value_head.weight"].clone().requires_grad_(), w["value_head.bias"].clone().requires_grad_())
        if "value_head.weight" in w else None
        for w in seen.weights
    ]  # fmt: skip
    rollouts = seen.rollouts[0]
    lengths = {len(drawn.ids) for rollout in rollouts.values() for drawn in rollout.answers}
    assert len(lengths) > 2 and any(drawn.ended for rollout in rollouts.values() for drawn in rollout.answers)
    window = learnt_from(method, block, rollouts, model, heads[0])
    window["reference"] = {
        tuple(indices): by_hand(model, None, rollouts, indices, block["temperature"])[0].detach()
        for indices in seen.indices
    }
    all_tokens = sum(len(drawn.ids) for rollout in rollouts.values() for drawn in rollout.answers)
    clipped_at_all = 0
    for step, indices in enumerate(seen.indices):
        model.load_state_dict({n: w for n, w in seen.weights[step].items() if "value_head" not in n})
        now = by_hand(model, heads[step], rollouts, indices, block["temperature"])
        loss, clipped = loss_of(method, block, window, indices, now, all_tokens / 2)
        model.zero_grad()
        loss.backward()
        if not block.get("entropy_coef"):  # whose value says nothing
            assert lines[step]["loss"] == pytest.approx(float(loss.detach()), rel=1e-5, abs=1e-6)
        wanted = {n: p.grad for n, p in model.named_parameters()}
        if heads[step]:
            wanted |= {"value_head.weight": heads[step][0].grad, "value_head.bias": heads[step][1].grad}
        assert wanted.keys() == seen.grads[step].keys()
        norm = torch.cat([grad.flatten() for grad in wanted.values()]).norm()
        for name, grad in wanted.items():
            assert float((seen.grads[step][name] - grad).norm()) <= 1e-5 * float(norm), (step, name)
        assert lines[step]["grad_norm"] == pytest.approx(float(norm), rel=1e-5)
        share = clipped.sum() / now[3].sum()
        assert lines[step]["clip_share"] == pytest.approx(float(share), abs=1e-6)
        clipped_at_all += int(clipped.sum())
    assert clipped_at_all > 0
    note(f"{case}: losses {[line['loss'] for line in lines]}, clipped {[line['clip_share'] for line in lines]}")


@pytest.mark.parametrize("reference", ["initial", "base"])
@pytest.mark.parametrize("adapter", [None, {"kind": "lora", "r": 4, "alpha": 8},
                                     {"kind": "lora", "r": 4, "alpha": 8, "init": "pissa"}])  # fmt: skip
def test_the_policy_begins_as_the_one_that_draws_and_as_its_reference(adapter, reference, plan_of, prompts, sharp,
                                                                      ready_of):  # fmt: skip
    """And leaves the reference, whatever it is: without an adapter the base is not the policy as it is now."""
    block = {"beta": 0.1, "reference": reference}
    plan = policies.policy_plan(
        plan_of, prompts, "grpo", block=block, model__name=sharp, adapter=adapter, train__max_steps=2
    )
    _, seen, lines = trained(ready_of, plan)
    assert abs(lines[0]["kl"]) < 1e-4 and abs(lines[1]["kl"]) > 1e-3
    for line in lines:
        assert line["approx_kl"] < 1e-6 and line["clip_share"] == 0.0
    for rollout in seen.rollouts[0].values():
        for drawn in rollout.answers:
            assert drawn.numbers["old"] == pytest.approx(drawn.numbers["reference"], abs=1e-5)


@pytest.mark.parametrize("method", ["ppo", "grpo", "rloo"])
def test_micro_batches_do_not_change_the_step(method, plan_of, prompts, sharp, ready_of):
    """The last micro-batches of the second batch of 3 hold no prompt at all."""
    import torch

    block = {"beta": 0.2, "rollout_steps": 2, "passes": 2, "max_new_tokens": 5}
    found = {}
    for micro in (4, 1):
        plan = policies.policy_plan(
            plan_of, prompts, method, block=block, model__name=sharp, train__max_steps=4, train__micro_batch_size=micro,
            train__learning_rate=1e-4,
        )  # fmt: skip
        found[micro] = trained(ready_of, plan)
    (_, one, lines), (_, four, others) = found[4], found[1]
    for step in range(4):
        norm = torch.cat([grad.flatten() for grad in one.grads[step].values()]).norm()
        for name, grad in one.grads[step].items():
            assert float((four.grads[step][name] - grad).norm()) <= 2e-4 * float(norm), (step, name)
        for name in ("reward", "kl", "answer_tokens", "clip_share", "entropy"):
            assert others[step][name] == pytest.approx(lines[step][name], rel=1e-4, abs=1e-5), (step, name)


def test_the_answers_of_a_window_do_not_depend_on_how_they_are_drawn(plan_of, prompts, sharp, ready_of):
    """Nor on the micro-batch: each has its own generator. Other windows, and other seeds, draw others."""
    found = []
    small = {"rollout_batch_size": 2}, {"train__micro_batch_size": 2}
    for block, sets in (({}, {}), small, ({}, {"train__seed": 7})):
        plan = policies.policy_plan(plan_of, prompts, "grpo", block=block, model__name=sharp, train__max_steps=1,
                                    data__shuffle=False, **sets)  # fmt: skip
        _, seen, _ = trained(ready_of, plan)
        found.append({i: [drawn.ids for drawn in rollout.answers] for i, rollout in seen.rollouts[0].items()})
        assert all(len({tuple(ids) for ids in answers}) > 1 for answers in found[-1].values())
    assert found[0] == found[1] != found[2]
