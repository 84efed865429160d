"""What a configuration takes in memory: weights, states, activations, tree; and whether it fits.

The components are loaded and each is run once. Everything that stays is counted from the arrays
that the components hold; what comes and goes is counted operation by operation, so that the plan
knows the highest moment of each stage. Interpreter and libraries are what the process takes beside
that, and loading is as measured here. Kernels' own scratch space is not seen. With ``--dry`` the
policy is made of shapes alone: its checkpoint's header and configuration are enough, and the device
that it is planned for need not be there.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import gc
import resource
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vla_reasoner_ros import plugins
from vla_reasoner_ros.arguments import AMOUNT, COUNT, WHOLE
from vla_reasoner_ros.components import (
    ComponentParameters,
    Components,
    device,
    load_components,
)
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.parameters import build
from vla_reasoner_ros.planner import blank
from vla_reasoner_ros.policies import checkpoint as checkpoints
from vla_reasoner_ros.reasoner import Reasoner
from vla_reasoner_ros.search.engine import Engine
from vla_reasoner_ros.search.parameters import SearchParameters
from vla_reasoner_ros.search.tree import size_in_bytes
from vla_reasoner_ros.types import Observation

GIB, MIB = 2**30, 2**20
_DEPTH = 12


@dataclass(frozen=True)
class Row:
    """One line of the plan.

    Attributes:
        part: what takes it.
        parameters: numbers that were learned; 0 where there are none.
        resident: bytes that stay.
        transient: bytes more at the highest moment while it runs.
        place: the device.
        apart: whether it lies in another process of this computer.
    """

    part: str
    parameters: int
    resident: int
    transient: int
    place: str = "cpu"
    apart: bool = False


@dataclass(frozen=True)
class Plan:
    """The lines and what they come to.

    Attributes:
        rows: one a component, and the tree.
        process: bytes of the interpreter and its libraries, as measured.
        loading: bytes of this process at the highest moment while it loaded, as measured.
    """

    rows: tuple[Row, ...]
    process: int
    loading: int = 0

    def on(self, place: str) -> int:
        """Bytes on a device at the highest moment: stages run one after the other."""
        rows = [row for row in self.rows if row.place == place]
        highest = max((row.transient for row in rows), default=0)
        running = sum(row.resident for row in rows) + highest
        return max(self.process + running, self.loading) if place == "cpu" else running

    @property
    def places(self) -> tuple[str, ...]:
        """The devices, the CPU first."""
        places = {row.place for row in self.rows} | ({"cpu"} if self.process else set())
        return tuple(sorted(places, key=lambda place: (place != "cpu", place)))


class Peak(TorchDispatchMode):
    """Counts the bytes of tensors made while it is entered, and the highest moment of them."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.highest = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation and look at what it made."""
        given = {
            leaf.untyped_storage()._cdata
            for leaf in tree_leaves((args, kwargs or {}))
            if isinstance(leaf, torch.Tensor)
        }
        answer = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(answer):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage(), given)
        return answer

    def _count(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key = storage._cdata
        if key in given or key in self._known:
            return
        self._known[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.highest = max(self.highest, self.live)
        weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.live -= self._known.pop(key, 0)


def plan(components: Components, search: SearchParameters, process: int = 0) -> Plan:
    """Count a configuration's memory.

    Args:
        components: loaded.
        search: the parameters that size tree, waves and the world model's states.
        process: bytes taken before the components were loaded; 0 leaves the interpreter, its
            libraries and the loading out.

    Raises:
        ModelError: a component cannot run on an example.
    """
    loading = peak_of() if process else 0
    observation = _example(components)
    names = ("policy", "world_model", "value", "prior")
    reasoner = Reasoner(*(getattr(components, name) for name in names), search)
    reasoner.warm_up(observation)
    # Before the counting, which takes memory of its own.
    settled = _settled()
    rows = _rows(components, search, observation)
    if process:
        counted = sum(row.resident for row in rows if row.place == "cpu" and not row.apart)
        process = max(process, settled - counted)
    return Plan(tuple(rows), process, loading)


def _rows(components: Components, search: SearchParameters, observation: Observation) -> list[Row]:
    policy, world_model = components.policy, components.world_model
    value, prior = components.value, components.prior
    counted: set[int] = set()
    rows = [
        _row("policy", policy, counted, lambda: policy.propose(observation), components),
    ]
    worker = getattr(policy, "process_id", None)
    if worker is not None:
        stays = resident_set(worker)
        rows.append(Row("policy's own process", 0, stays, peak_of(worker) - stays, apart=True))
    if world_model is not None and value is not None and prior is not None:
        engine = Engine(search, world_model.macro_steps, policy.spec.action)
        wave = min(search.wave, search.simulations)
        actions = np.zeros(
            (wave, world_model.macro_steps, policy.spec.action.dimensions), np.float32
        )
        parents, children = np.zeros(wave, np.int64), np.arange(1, wave + 1)

        def imagine() -> None:
            world_model.encode(observation)
            world_model.step(parents, actions, children)

        def evaluate() -> None:
            value.begin(observation)
            value.evaluate(children)

        rows.append(_row(f"world model, {wave} leaves", world_model, counted, imagine, components))
        rows.append(_row("value", value, counted, evaluate, components))
        rows.append(_row("prior", prior, counted, lambda: None, components))
        rows.append(Row("tree", 0, size_in_bytes(engine.tree), 0))
    return rows


def plan_dry(parameters: ComponentParameters) -> Plan:
    """Count the memory of a policy that is not loaded.

    Args:
        parameters: of them the policy and its options.

    Raises:
        ConfigurationError: the policy cannot be made of shapes alone, or its checkpoint or options
            are wrong.
    """
    options = plugins.read_options(parameters.policy_options)
    if not hasattr(plugins.load("policy", parameters.policy), "compute"):
        raise ConfigurationError(
            f"policy {parameters.policy!r} cannot be planned without loading it; leave out --dry"
        )
    with checkpoints.shapes_only():
        policy = plugins.create("policy", parameters.policy, options)
        observation = blank(policy.spec, 0)
        row = _row("policy", policy, set(), lambda: policy.compute(observation), Components(policy))
    place = str(options.get("device", "auto"))
    if place == "auto":
        place = "cuda" if torch.cuda.is_available() else "cpu"
    return Plan((dataclasses.replace(row, place=place),), 0)


def resident_set(process: int | str = "self") -> int:
    """Bytes of a process, this one or by its number, that are in memory now."""
    with open(f"/proc/{process}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def peak_of(process: int | str = "self") -> int:
    """The most bytes of a process that were in memory at once, since it began."""
    with open(f"/proc/{process}/status", encoding="ascii") as file:
        lines = dict(line.split(":", 1) for line in file)
    return int(lines["VmHWM"].split()[0]) * 1024


def _settled() -> int:
    """Bytes in memory without what was freed and not given back."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # only the GNU C library has it
        ctypes.CDLL(None).malloc_trim(0)
    return resident_set()


def table(found: Plan) -> str:
    """The plan as text."""
    lines = [f"{'part':<28}{'parameters':>14}{'stays MiB':>12}{'peak MiB':>12}  device"]
    lines += [
        f"{row.part:<28}{row.parameters:>14,}{row.resident / MIB:>12.1f}"
        f"{row.transient / MIB:>12.1f}  {row.place}"
        for row in found.rows
    ]
    if found.process:
        lines.append(f"{'interpreter and libraries':<28}{'':>14}{found.process / MIB:>12.1f}")
        lines.append(f"{'while loading':<28}{'':>26}{found.loading / MIB:>12.1f}")
    lines += [f"total on {place}: {found.on(place) / GIB:.3f} GiB" for place in found.places]
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    for kind in ("policy", "world-model", "value", "prior"):
        default = getattr(ComponentParameters, kind.replace("-", "_"))
        parser.add_argument(f"--{kind}", default=default, help="registered name")
        parser.add_argument(f"--{kind}-options", default="", help="YAML file with its options")
    parser.add_argument("--simulations", type=WHOLE, default=None, help="of one decision")
    parser.add_argument("--wave", type=COUNT, default=None, help="leaves imagined together")
    parser.add_argument("--dry", action="store_true", help="the policy alone, of shapes alone")
    parser.add_argument("--gib", type=AMOUNT, default=0.0, help="memory of the device, GiB")


def run(arguments: argparse.Namespace) -> int:
    """Print the plan; 1 when it does not fit in ``--gib``."""
    process = resident_set()
    given = {
        name: getattr(arguments, name)
        for name in ("simulations", "wave")
        if getattr(arguments, name) is not None
    }
    search = build(SearchParameters, given)
    names = [f"{kind}{end}" for kind in plugins.BUILT_IN for end in ("", "_options")]
    parameters = ComponentParameters(**{name: getattr(arguments, name) for name in names})
    if arguments.dry:
        found, reason = plan_dry(parameters), ""
    else:
        components = load_components(parameters)
        found, reason = plan(components, search, process), components.reason
    print(table(found))
    if reason:
        print(f"no world model: {reason}")
    if arguments.gib <= 0.0:
        return 0
    place = found.places[-1]
    needed = found.on(place) / GIB
    fits = needed <= arguments.gib
    print(f"{'fits' if fits else 'does not fit'} in {arguments.gib:g} GiB of {place}")
    return int(not fits)


def _example(components: Components) -> Observation:
    world_model = components.world_model
    if world_model is not None and world_model.needs_simulator_state:
        return world_model.example()
    return blank(components.policy.spec, world_model.joints if world_model is not None else 0)


def _row(
    part: str,
    component: Any,
    counted: set[int],
    work: Callable[[], Any],
    components: Components,
) -> Row:
    work()  # what is made once, on first use, stays
    parameters, resident = 0, 0
    for array in _arrays(component, _others(component, components)):
        key, size, learned = array
        if key not in counted:
            counted.add(key)
            resident += size
            parameters += learned
    gc.collect()
    with Peak() as peak:
        work()
    return Row(part, parameters, resident, peak.highest, device(component))


def _others(component: Any, components: Components) -> set[int]:
    parts = (components.policy, components.world_model, components.value, components.prior)
    return {id(part) for part in parts if part is not component}


def _arrays(top: Any, barred: set[int]) -> Iterator[tuple[int, int, int]]:
    """Key, bytes and learned numbers of every array that an object holds, each storage once."""
    seen: set[int] = set()
    waiting: list[tuple[Any, int]] = [(top, 0)]
    while waiting:
        held, depth = waiting.pop()
        if id(held) in seen or id(held) in barred or depth > _DEPTH:
            continue
        seen.add(id(held))
        if isinstance(held, torch.Tensor):
            storage = held.untyped_storage()
            learned = held.numel() if isinstance(held, torch.nn.Parameter) else 0
            yield storage._cdata, storage.nbytes(), learned
        elif isinstance(held, np.ndarray):
            while isinstance(held.base, np.ndarray):
                held = held.base
            if held.dtype != object:
                yield held.ctypes.data, held.nbytes, 0
        elif isinstance(held, Mapping):
            waiting += [(value, depth + 1) for value in held.values()]
        elif isinstance(held, list | tuple | set | frozenset):
            waiting += [(value, depth + 1) for value in held]
        elif isinstance(held, torch.nn.Module):
            waiting += [(value, depth + 1) for value in (*held.parameters(), *held.buffers())]
            # What parts hold that is no module of theirs: a frozen encoder below them, say.
            beside = (value for part in held.modules() for value in vars(part).values())
            waiting += [(value, depth + 1) for value in beside if _is_foreign(value)]
        elif _is_foreign(held):
            waiting += [(value, depth + 1) for value in getattr(held, "__dict__", {}).values()]


def _is_foreign(held: Any) -> bool:
    """Whether it is an object of neither Python itself nor the libraries of arrays."""
    own = ("builtins", "collections", "torch", "numpy")
    is_module = isinstance(held, torch.nn.Module)
    return not is_module and type(held).__module__.partition(".")[0] not in own
