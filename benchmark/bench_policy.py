"""What stands between a policy's network and the reasoner: prints JSON lines.

``policy.adapter_overhead_ms``: a proposal of the adapter ``pi0`` less the network's part of the
same call; three pictures of 224x224, narrow random weights.
``policy.handover_ms``: a proposal of a policy in a worker process, less the same call in this one;
the policy answers zeros, so what is left is handing three pictures of 224x224 over and a chunk
back.
``policy.openpi_round_trip_ms``: a proposal of an openpi server on this machine that answers zeros.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from websockets.sync.server import ServerConnection, serve

from vla_reasoner_ros import plugins
from vla_reasoner_ros.policies import wire
from vla_reasoner_ros.policies.openpi import OpenPi
from vla_reasoner_ros.policies.pi0 import Pi0
from vla_reasoner_ros.policies.process import ProcessPolicy
from vla_reasoner_ros.types import Observation

SIDE, HORIZON = 224, 50
CAMERAS = ("base", "left", "right")
CONVENTION: dict[str, Any] = {
    "action": {
        "representation": "end_effector_delta",
        "names": ["x", "y", "z", "rx", "ry", "rz", "gripper"],
        "frame": "base",
        "dt": 0.02,
        "gripper": {"index": 6, "open": 1.0, "closed": 0.0, "binary": True},
    },
    "cameras": {name: name for name in CAMERAS},
    "image_size": [SIDE, SIDE],
    "state": {"state": ["ee_position", "ee_rotation_vector", "gripper_opening"]},
    "horizon": HORIZON,
}
NULL_POLICY = '''
import numpy as np

from vla_reasoner_ros.policies.convention import Convention


class NullPolicy:
    """Answers zeros."""

    def __init__(self, convention):
        self._convention = Convention.from_mapping(convention, "null")
        self.spec = self._convention.spec("null")

    def reset(self):
        """Nothing is remembered."""

    def propose(self, observation, n=1):
        """Zeros."""
        assert len(observation.images) == 3
        return [self._convention.chunk(np.zeros((50, 7)), observation, "null")]
'''


def milliseconds(action: Callable[[], object], repeats: int) -> np.ndarray:
    """Time an action after three runs for warming up."""
    found = np.empty(repeats)
    for index in range(-3, repeats):
        begin = time.perf_counter()
        action()
        if index >= 0:
            found[index] = 1000.0 * (time.perf_counter() - begin)
    return found


class TimedPi0(Pi0):
    """Knows how long its network took."""

    network_ms = 0.0

    def integrate(
        self,
        inputs: Mapping[str, torch.Tensor],
        noise: torch.Tensor,
        held: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As the base class, timed."""
        begin = time.perf_counter()
        answer = super().integrate(inputs, noise, held)
        self.network_ms = 1000.0 * (time.perf_counter() - begin)
        return answer


def report(name: str, value: float, repeats: int, detail: str) -> None:
    """Print one line."""
    line = {"name": f"policy.{name}", "value": round(value, 4), "unit": "ms", "n": repeats}
    print(json.dumps({**line, "detail": detail}), flush=True)


def seen() -> Observation:
    """Three noisy pictures."""
    rng = np.random.default_rng(0)
    return Observation(
        stamp_ns=0,
        images={n: rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for n in CAMERAS},
        joint_names=(),
        joint_positions=np.zeros(0),
        joint_velocities=np.zeros(0),
        ee_position=np.array([0.4, 0.0, 0.3]),
        ee_quaternion=np.array([1.0, 0.0, 0.0, 0.0]),
        gripper=1.0,
        instruction="pick up the cup",
    )


def write_pi0(folder: Path) -> None:
    """A checkpoint of narrow random weights with pi0's own picture and chunk sizes."""
    from transformers import PI0Config, PI0ForConditionalGeneration

    text = {
        "model_type": "gemma",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "vocab_size": 128,
    }
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "patch_size": 14,
        "image_size": SIDE,
        "vision_use_head": False,
    }
    torch.manual_seed(0)
    config = PI0Config(
        vlm_config={
            "model_type": "paligemma",
            "text_config": text,
            "vision_config": vision,
            "projection_dim": 64,
            "image_token_id": 100,
        },
        dit_config=text,
        num_inference_steps=2,
    )
    PI0ForConditionalGeneration(config).save_pretrained(folder)
    statistics = {
        f"{what}_{part}": [value] * 7
        for what in ("state", "actions")
        for part, value in (("mean", 0.0), ("std", 1.0))
    }
    (folder / "processor_config.json").write_text(json.dumps(statistics))
    tokens = Tokenizer(WordLevel({"<unk>": 0, "<bos>": 2}, unk_token="<unk>"))
    tokens.pre_tokenizer = Whitespace()
    tokens.save(str(folder / "tokenizer.json"))


def adapter_overhead(folder: Path, repeats: int = 40) -> None:
    """Both parts are of one call: a busy machine's hiccups in the network do not count."""
    write_pi0(folder)
    policy, observation = TimedPi0(str(folder), CONVENTION, device="cpu"), seen()
    network: list[float] = []
    whole = milliseconds(lambda: network.append(timed(policy, observation)), repeats)
    overhead = float(np.median(whole - network[-repeats:]))
    detail = f"pi0, three 224x224 pictures; the bare call takes {np.median(network):.1f} ms"
    report("adapter_overhead_ms", overhead, repeats, detail)


def timed(policy: TimedPi0, observation: Observation) -> float:
    """Propose; milliseconds of it that the network took."""
    policy.propose(observation)
    return policy.network_ms


def handover(folder: Path, repeats: int = 500) -> None:
    """A worker process with the null policy."""
    (folder / "null_policy.py").write_text(NULL_POLICY)
    metadata = folder / "null_policy-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: null-policy\nVersion: 1.0\n")
    entry = "[vla_reasoner_ros.policy]\nnull = null_policy:NullPolicy\n"
    (metadata / "entry_points.txt").write_text(entry)
    path = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), path]))
    sys.path.insert(0, str(folder))
    options, observation = {"convention": CONVENTION}, seen()
    here, away = plugins.create("policy", "null", options), ProcessPolicy("null", options)
    bare = float(np.median(milliseconds(lambda: here.propose(observation), repeats)))
    found = milliseconds(lambda: away.propose(observation), repeats)
    detail = "three 224x224 pictures to the worker and a chunk of 50 back"
    report("handover_ms", float(np.median(found)) - bare, repeats, detail)
    report("handover_ms_p99", float(np.percentile(found, 99)) - bare, repeats, detail)


def openpi(repeats: int = 200) -> None:
    """A server on this machine that answers zeros."""

    def answer(connection: ServerConnection) -> None:
        connection.send(wire.pack({}))
        with contextlib.suppress(Exception):
            for message in connection:
                wire.unpack(message)
                connection.send(wire.pack({"actions": np.zeros((HORIZON, 7), np.float32)}))

    server = serve(answer, "127.0.0.1", 0, compression=None, max_size=None)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = server.socket.getsockname()[1]
    policy, observation = OpenPi(f"ws://127.0.0.1:{port}", CONVENTION), seen()
    found = milliseconds(lambda: policy.propose(observation), repeats)
    server.shutdown()
    detail = "three 224x224 pictures (452 kB) over loopback, no inference"
    report("openpi_round_trip_ms", float(np.median(found)), repeats, detail)


def main() -> None:
    """Run all."""
    torch.set_num_threads(1)
    logging.getLogger("websockets").setLevel(logging.CRITICAL)
    for bench in (adapter_overhead, handover):
        with tempfile.TemporaryDirectory() as folder:
            bench(Path(folder))
    openpi()


if __name__ == "__main__":
    main()
