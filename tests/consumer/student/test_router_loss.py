"""Students with experts: the load balancing loss is transformers' own, on tokens alone, once for each position."""

from dataclasses import replace

import pytest
import torch

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.data import CaskDataset
from logitcask_consumer.methods import TokenMethod
from logitcask_consumer.student.forward import attach
from logitcask_consumer.student.router_loss import router_note, used_slots
from logitcask_consumer.training.callbacks import read_metrics
from logitcask_consumer.training.run import train
from logitcask_schemas.errors import ModelError
from tests.support.consumer.cask_builder import tiny_model, tiny_tokenizer

EXPERTS = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}


def student(kind, **more):
    return tiny_model(kind, layers=2, **EXPERTS[kind], **more)


class Zero:
    """A task whose own loss is 0: what remains is the router's."""

    slots_T = torch.tensor([0])
    states = None

    def at_head(self, hidden_TD, head, sequences_T):
        return {"loss": hidden_TD.sum() * 0.0}


@pytest.mark.parametrize("kind", EXPERTS)
def test_it_is_what_transformers_computes(kind):
    model = student(kind).train()
    ids, positions = torch.arange(2, 34).view(2, 16), torch.arange(16).expand(2, 16)
    with torch.no_grad():
        expected = model(input_ids=ids, position_ids=positions, output_router_logits=True, use_cache=False).aux_loss
    attach(model, router_loss=0.25)
    out = model(input_ids=ids, position_ids=positions, distill=Zero())
    torch.testing.assert_close(out["router"], 0.25 * expected, rtol=1e-6, atol=0)
    out["router"].backward()
    gates = [value for name, value in model.named_parameters() if "gate.weight" in name]
    assert gates
    assert all(gate.grad.abs().max() > 0 for gate in gates)
    assert "router" not in model.eval()(input_ids=ids, position_ids=positions, distill=Zero())


def test_a_student_of_a_class_of_its_own_is_known_by_its_family():
    """As one is that is spread over processes: torch makes a class for it."""
    plain = student("mixtral")
    expected = router_note(plain, None)
    assert expected is not None
    assert "--router-loss" in expected
    plain.__class__ = type("Spread", (type(plain),), {"__module__": __name__})
    assert router_note(plain, None) == expected


def test_unused_slots_count_for_nothing():
    positions = torch.tensor([[0, 1, 2, 0, 1, 0, 0, 0], [0, 1, 2, 3, 4, 5, 6, 7]])
    used = torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0], [1] * 8]).bool()
    assert torch.equal(used_slots(positions), used)
    assert used_slots(torch.zeros(2, 4, dtype=torch.int64)).all(), "a mean over nothing would be no number"
    model = student("mixtral").train()
    ids = torch.arange(2, 18).view(2, 8)
    attach(model, router_loss=1.0)
    whole = model(input_ids=ids, position_ids=torch.arange(8).expand(2, 8), distill=Zero())["router"]
    longer_ids, longer = torch.zeros(2, 12, dtype=torch.int64), torch.zeros(2, 12, dtype=torch.int64)
    longer_ids[:, :8], longer[:, :8] = ids, torch.arange(8)
    filled = model(input_ids=longer_ids, position_ids=longer, distill=Zero())["router"]
    torch.testing.assert_close(filled, whole, rtol=1e-5, atol=0)


def test_it_is_added_for_each_position_that_counts(place):
    dataset = CaskDataset.open(place / "cask", tokenizer=tiny_tokenizer(), seq_len=64)
    model = student("qwen3_moe").train()
    attach(model, router_loss=0.0)
    method = TokenMethod()
    loss = method.on(model, dataset)
    batch = loss.collator(dataset.read(range(3)))
    plain = loss.value(model, batch, 0.0).loss
    attach(model, router_loss=0.5)
    with_router = loss.value(model, batch, 0.0).loss
    out = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], distill=loss.loss.task(batch, 0.0))
    expected = plain + out["router"] * float(loss.counted(batch))
    torch.testing.assert_close(with_router, expected.to(with_router.dtype))


def test_a_config_that_asks_for_it_is_followed_and_one_that_does_not_is_told_of():
    asks = student("mixtral", output_router_logits=True, router_aux_loss_coef=0.125)
    attach(asks)
    assert asks.forward.router.coefficient == 0.125
    assert router_note(asks, None) is None
    attach(asks, router_loss=0.0)
    assert asks.forward.router is None
    silent = student("mixtral")
    attach(silent)
    assert silent.forward.router is None
    assert "--router-loss 0.001" in (router_note(silent, None) or "")
    assert router_note(silent, 0.0) is None
    assert router_note(tiny_model(), None) is None
    with pytest.raises(ModelError, match="has no routers"):
        attach(tiny_model(), router_loss=0.1)


def test_a_run_balances_its_experts(place, tmp_path):
    """With a large coefficient the experts of the trained student are used more evenly than without."""
    student("qwen3_moe").save_pretrained(tmp_path / "student")
    tiny_tokenizer().save_pretrained(tmp_path / "student")
    config = TrainConfig(
        casks=(place / "cask",),
        student=str(tmp_path / "student"),
        output=tmp_path / "with",
        seq_len=64,
        batch_tokens=256,
        max_steps=30,
        lr=5e-3,
        router_loss=10.0,
    )
    losses = []
    for own in (config, replace(config, router_loss=0.0, output=tmp_path / "without")):
        train(own)
        line = read_metrics(own.output / "metrics.jsonl")[-1]
        losses.append(line["loss"] - line["kd"])
        model = type(student("qwen3_moe")).from_pretrained(own.output)
        ids = torch.arange(2, 66).view(4, 16)
        with torch.no_grad():
            losses.append(float(model(input_ids=ids, output_router_logits=True, use_cache=False).aux_loss))
    added, balanced, nothing, unbalanced = losses
    assert added > 10.0, "the logged loss holds it: at least the coefficient, which is its value for equal shares"
    assert abs(nothing) < 1e-4
    assert balanced < unbalanced
