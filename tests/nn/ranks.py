"""What a rank does in the tests of layers under ``torch.distributed``: ``torchrun … -m
tests.nn.ranks ACTS DEVICE FOLDER`` plays acts with each model, and leaves what it found of each in
the folder: how far numbers lie from those of one process, relative to the largest, and what is so.

Everything is in float64, so that what differs by more than rounding is wrong.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from pdssm_compiler import pd_scan
from pdssm_compiler.nn import PDSSM, CausalLM, FlashPDSSM, parameter_groups
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.schedules.templates.torch_tokens import TorchTokens
from tests.runtime.tuning.launch import leave
from tests.torch_only import torch_only

BATCH, LENGTH, WIDTH, VOCABULARY = 4, 5, 6, 11
MIXER = {"heads": 2, "state_size": 3}
MODELS: dict[str, Callable[..., nn.Module]] = {
    "FlashPDSSM": lambda **f: FlashPDSSM(WIDTH, **MIXER, **f),
    # State sizes that two ranks cannot share evenly.
    "PDSSM": lambda **f: PDSSM(WIDTH, state_size=5, dictionary_size=3, **f),
    "CausalLM": lambda **f: CausalLM(
        VOCABULARY, WIDTH, 3, attention_every=2, attention_heads=2, mixer=MIXER, **f
    ),
}
RATE = 1e-2
DEVICE = torch.device("cpu")


def made(name: str, seed: int = 0, **factory: Any) -> nn.Module:
    """A model, the same in every process."""
    torch.manual_seed(seed)
    model = MODELS[name](**{"dtype": torch.float64, **factory})
    for module in model.modules():
        if hasattr(module, "temperature"):
            module.temperature.fill_(0.7 + 0.1 * seed)
    return model.to(DEVICE)


def inputs(name: str) -> torch.Tensor:
    """A batch, the same in every process."""
    random = torch.Generator().manual_seed(1)
    if name == "CausalLM":
        return torch.randint(VOCABULARY, (BATCH, LENGTH), generator=random).to(DEVICE)
    shape = (BATCH, LENGTH, WIDTH)
    return torch.randn(shape, generator=random, dtype=torch.float64).to(DEVICE)


def loss_of(outputs: torch.Tensor) -> torch.Tensor:
    """A mean over the batch, so that the mean over ranks is that of the whole."""
    return outputs.sin().mean()


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameter_groups(model, 0.1), lr=RATE)


def mine(batch: torch.Tensor) -> torch.Tensor:
    """This rank's half."""
    return batch.chunk(2)[dist.get_rank()]


def sharded(model: nn.Module, diagonal_apart: bool = False, **options: Any) -> nn.Module:
    """The model under FSDP2: the blocks of a language model each by themselves."""
    mesh = init_device_mesh(DEVICE.type, (2,))
    if diagonal_apart:
        for module in model.modules():
            if isinstance(module, FlashPDSSM | PDSSM):
                fully_shard(module.diagonal, mesh=mesh)
    for block in getattr(model, "blocks", ()):
        fully_shard(block, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def error(got: Iterable[torch.Tensor], want: Iterable[torch.Tensor]) -> float:
    """The largest of the differences, each relative to the largest number of its tensor."""
    worst = 0.0
    for one, other in zip(got, want, strict=True):
        one, other = whole(one), whole(other)
        assert one.shape == other.shape
        if other.numel():
            scale = other.abs().max().clamp(min=1e-6)
            worst = max(worst, float((one - other).abs().max() / scale))
    return worst


def gradients(model: nn.Module) -> list[torch.Tensor]:
    found = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None for gradient in found)
    return [gradient for gradient in found if gradient is not None]


def trained(name: str) -> tuple[nn.Module, torch.optim.Optimizer, torch.Tensor]:
    """In one process: a model after a step on the whole batch, and what it gave before."""
    model = made(name)
    optimizer = optimizer_of(model)
    outputs = model(inputs(name))
    loss_of(outputs).backward()
    optimizer.step()
    return model, optimizer, outputs.detach()


def ddp(name: str, folder: Path) -> dict[str, Any]:
    """``DistributedDataParallel``: gradients are those of the joint batch."""
    want, x = made(name), inputs(name)
    loss_of(want(x)).backward()
    model = DistributedDataParallel(made(name))
    loss_of(model(mine(x))).backward()
    found = {"gradients": error(gradients(model), gradients(want))}
    # Twice before a backward: the buffers are broadcast in between.
    model.zero_grad()
    (loss_of(model(mine(x))) / 2 + loss_of(model(mine(x))) / 2).backward()
    return found | {"twice": error(gradients(model), gradients(want))}


def fsdp(name: str, folder: Path) -> dict[str, Any]:
    """FSDP2: outputs, gradients, clipping and a step of the optimiser."""
    want, x = made(name), inputs(name)
    outputs = want(x)
    loss_of(outputs).backward()
    model = sharded(made(name))
    optimizer = optimizer_of(model)
    names = {id(p): key for key, p in model.named_parameters()}
    groups = [
        [names[id(p)] for p in group["params"] if isinstance(p, DTensor)]
        for group in optimizer.param_groups
    ]
    alone = {id(p): key for key, p in want.named_parameters()}
    right = optimizer_of(want)
    got = model(mine(x))
    loss_of(got).backward()
    found = {
        "outputs": error([got], [mine(outputs)]),
        "gradients": error(gradients(model), gradients(want)),
        "groups": groups == [[alone[id(p)] for p in g["params"]] for g in right.param_groups],
    }
    norms = [nn.utils.clip_grad_norm_(m.parameters(), 0.01) for m in (model, want)]
    found["norm"] = error(norms[:1], norms[1:])
    optimizer.step()
    right.step()
    # A ten-thousandth of what the step changes at most.
    found["step"] = error(model.parameters(), want.parameters()) / RATE
    return found


def checkpoint(name: str, folder: Path) -> dict[str, Any]:
    """Sharded state of model and optimiser, there and back, and from one process's."""
    place = folder / f"checkpoint-{name}"
    model = sharded(made(name))
    optimizer = optimizer_of(model)
    loss_of(model(mine(inputs(name)))).backward()
    optimizer.step()
    weights, moments = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=place)

    def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
        parts = [optimizer.state[p][key] for p in model.parameters()
                 for key in ("exp_avg", "exp_avg_sq", "step")]  # fmt: skip
        return [whole(tensor) for tensor in (*model.state_dict().values(), *parts)]

    other = sharded(made(name, seed=1))
    into = optimizer_of(other)
    restore(other, into, place)
    found: dict[str, Any] = {
        "back": all(map(torch.equal, state(other, into), state(model, optimizer)))
    }
    # A step that both take is the same.
    for each, steps in ((model, optimizer), (other, into)):
        steps.zero_grad()
        loss_of(each(mine(inputs(name)))).backward()
        steps.step()
    found["goes on"] = all(map(torch.equal, state(other, into), state(model, optimizer)))
    # All of it in one rank, for who has no process group.
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    full = get_model_state_dict(model, options=options)
    if dist.get_rank() == 0:
        plain = made(name, seed=1).cpu()
        plain.load_state_dict(full)
        found["full"] = error(plain.state_dict().values(), full.values())
    # From one process's file.
    third = sharded(made(name, seed=1))
    restore(third, optimizer_of(third), folder / f"alone-{name}")
    found["of one"] = error(third.state_dict().values(), trained(name)[0].state_dict().values())
    return found


def restore(model: nn.Module, optimizer: torch.optim.Optimizer, place: Path) -> None:
    """Load what :func:`checkpoint` saved, whatever the number of processes was and is."""
    weights, moments = get_state_dict(model, optimizer)
    state = {"model": weights, "optimizer": moments}
    dcp.load(state, checkpoint_id=place, no_dist=not dist.is_initialized())
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments)


@torch.no_grad()
def decode(name: str, folder: Path) -> dict[str, Any]:
    """Caches, steps and generation of a sharded model, from its first call on."""
    want, model, x = made(name), sharded(made(name)), mine(inputs(name))
    found = {}
    for begun in (False, True):
        caches = [m.init_cache(len(x)) for m in (model, want)]
        outs: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        for token in x.unbind(1):
            for number, each in enumerate((model, want)):
                out, caches[number] = each.step(token, caches[number])
                outs[number].append(out)
        if begun:
            caches = [m(x, output_cache=True)[1] for m in (model, want)]
            found["cached"] = error(
                [model.step(x[:, 0], caches[0])[0]], [want.step(x[:, 0], caches[1])[0]]
            )
        found[f"steps {begun}"] = error(*outs)
    part = distribute_tensor(
        torch.ones(2, 3, 2, 4, 2).to(DEVICE), init_device_mesh(DEVICE.type, (2,)), [Shard(0)]
    )
    try:
        pd_scan(part, part)
        found["refused"] = False
    except ArgumentError as refused:
        found["refused"] = "diagonal must be a tensor of this process, got a DTensor" in str(
            refused
        )
    if name == "CausalLM":
        found["text"] = bool(torch.equal(model.generate(x, 5), want.generate(x, 5)))
        fresh = sharded(made(name))
        found["at once"] = bool(torch.equal(fresh.generate(x, 5), want.generate(x, 5)))
        # The first rank is at its end with the first token, and goes on for the other one.
        first, free = inputs(name)[:1], want.generate(x[:1], 5)
        end = int(want.generate(first, 1)[0, -1])
        stopped = free.clone()
        for place in range(LENGTH + 1, LENGTH + 5):
            if stopped[0, place - 1] == end:
                stopped[0, place] = end
        found["to the end"] = bool(torch.equal(fresh.generate(x[:1], 5, end=end), stopped))
    return found


def meta(name: str, folder: Path) -> dict[str, Any]:
    """Made without memory, sharded, given memory and started: what each process draws is its own,
    but what is set is as in one process.
    """
    model = sharded(MODELS[name](device="meta", dtype=torch.float64)).to_empty(device=DEVICE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    torch.manual_seed(dist.get_rank())
    model.reset_parameters()
    torch.manual_seed(0)
    want = MODELS[name](dtype=torch.float64).to(DEVICE)
    found: dict[str, Any] = {
        "finite": all(bool(whole(t).isfinite().all()) for t in model.state_dict().values()),
        "permutations": True,
    }
    ratios: list[float] = []
    for one, other in zip(model.modules(), want.modules(), strict=True):
        if not isinstance(one, FlashPDSSM | PDSSM):
            continue
        maps = whole(one.dictionary_logits).argmax(-2)
        straight = torch.arange(maps.shape[-1], device=DEVICE)
        found["permutations"] &= bool((maps.sort(-1).values == straight).all())
        found["permutations"] &= bool((maps[..., 0, :] == straight).all())
        # Drives are made for the memories that were drawn.
        losses = [float(each.diagonal.mean_loss()) for each in (one, other)]
        scales = [(losses[0] / losses[1]) ** 0.5]
        if isinstance(one, FlashPDSSM):
            made_by, cuts = "token_proj", list(one._widths)
        else:
            made_by, cuts = "drive_proj", [2 * one.state_size]
        parts = [whole(getattr(each, made_by).weight).split(cuts) for each in (one, other)]
        scales += [1.0] * (len(cuts) - 1)
        ratios += [
            float(mine.norm() / right.norm()) / scale
            for mine, right, scale in zip(*parts, scales, strict=True)
        ]
    found["ratios"] = ratios
    loss_of(model(inputs(name))).backward()
    found["finite"] &= all(bool(whole(g).isfinite().all()) for g in gradients(model))
    return found


def mixed(name: str, folder: Path) -> dict[str, Any]:
    """Parameters gathered in bfloat16, but those of the diagonal, which are sharded apart."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32,
                                  cast_forward_inputs=False)  # fmt: skip
    want = made(name, dtype=torch.float32)
    model = sharded(made(name, dtype=torch.float32), diagonal_apart=True, mp_policy=policy)
    x = inputs(name)
    if x.is_floating_point():
        x = x.float()
    seen: list[bool] = []
    for one, other in zip(model.modules(), want.modules(), strict=True):
        if isinstance(one, FlashPDSSM | PDSSM):

            def look(_: nn.Module, given: Any, out: Any, plain: nn.Module) -> None:
                # Every digit is there, of the diagonal or of what heads have of it.
                right = plain(*given)
                both = zip(out, right, strict=True) if isinstance(out, tuple) else [(out, right)]
                seen.append(all(torch.equal(mine, theirs) for mine, theirs in both))

            one.diagonal.register_forward_hook(partial(look, plain=other.diagonal))
    inside = mine(x).bfloat16() if x.is_floating_point() else mine(x)
    got, cache = model(inside, output_cache=True)
    right = want(mine(x))
    loss_of(got.float()).backward()
    arrived = gradients(model)
    with torch.no_grad():
        out, cache = model.step(inside[:, 0], cache)
    caches = cache if isinstance(cache, tuple) and not hasattr(cache, "state") else (cache,)
    return {
        "dtype": got.dtype == torch.bfloat16 and out.dtype == torch.bfloat16,
        "diagonal": bool(seen) and all(seen),
        "cache": all(c.state.dtype == torch.float32 for c in caches if hasattr(c, "state")),
        "gradients": all(
            g.dtype == torch.float32 and bool(whole(g).isfinite().all()) for g in arrived
        ),
        "outputs": float((got.float() - right).norm() / right.norm()),
    }


ACTS = (ddp, fsdp, checkpoint, decode, meta, mixed)


def main() -> None:
    """Play the acts that are asked for, with every model."""
    global DEVICE
    acts, kind, place = sys.argv[1:]
    folder = Path(place)
    torch.set_num_threads(1)
    if kind == "cuda":
        DEVICE = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(DEVICE)
    # For what takes longer, something waits for ever.
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=timedelta(seconds=90))
    with torch_only(TorchTokens()) if kind == "cpu" else nullcontext():
        for act in ACTS:
            if act.__name__ in acts.split(","):
                found = {}
                for name in MODELS:
                    # For who asks why it takes so long.
                    print(f"rank {dist.get_rank()}: {act.__name__}, {name}", flush=True)
                    found[name] = act(name, folder)
                note = folder / f"{act.__name__}-{dist.get_rank()}.json"
                note.write_text(json.dumps(found))
    leave()


if __name__ == "__main__":
    main()
