"""Shows what the planner imagines: paths as markers, drawn into the picture, and for Rerun."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import Image
from visualization_msgs.msg import MarkerArray

from vla_reasoner_ros.data.cameras import load_cameras
from vla_reasoner_ros.data.messages import statistics_from_message, tree_from_message
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.evaluation.views import RerunLog, annotated
from vla_reasoner_ros.msg import Observation as ObservationMessage
from vla_reasoner_ros.msg import SearchStatistics as SearchStatisticsMessage
from vla_reasoner_ros.msg import SearchTree as SearchTreeMessage
from vla_reasoner_ros.parameters import parameter
from vla_reasoner_ros.ros import qos
from vla_reasoner_ros.ros.clock import to_nanoseconds
from vla_reasoner_ros.ros.conversions import image_to_message, observation_from_message
from vla_reasoner_ros.ros.diagnostics import Level, Report
from vla_reasoner_ros.ros.lifecycle import BaseParameters, LifecycleNode, run
from vla_reasoner_ros.ros.markers import Joiner, paths_to_markers
from vla_reasoner_ros.search.lines import ImaginedPath, imagined_paths
from vla_reasoner_ros.types import Observation


@dataclass(frozen=True)
class ViewParameters(BaseParameters):
    """What is drawn, and where the camera stands."""

    cameras: str = parameter(
        "",
        "Calibration of fixed cameras in the arm's base frame: a name in config/cameras/ or the "
        "path of such a YAML file. Empty: no paths in the picture.",
        read_only=True,
    )
    camera: str = parameter(
        "",
        "Camera of the observation whose picture is drawn on; empty is the first that is "
        "calibrated, else the first.",
        read_only=True,
    )
    picture_height: int = parameter(
        480,
        "A smaller picture is enlarged to this height.",
        unit="pixels",
        minimum=16,
        maximum=4096,
    )
    rerun: str = parameter(
        "",
        "Rerun recording (.rrd) to write as well, which needs the extra rerun; empty is none.",
        read_only=True,
    )


class ViewNode(LifecycleNode[ViewParameters]):
    """Joins observation, statistics and tree of each decision, and draws for whoever looks."""

    parameters_class = ViewParameters

    def configure(self) -> None:
        """Read the calibration and listen."""
        given = self.parameters
        self._cameras = load_cameras(given.cameras) if given.cameras else {}
        self._log = RerunLog(given.rerun) if given.rerun else None
        self._joiner = Joiner()
        self._shown = 0
        self._markers = self.create_lifecycle_publisher(MarkerArray, "imagined_paths", qos.STATE)
        self._pictures = self.create_lifecycle_publisher(
            Image, "imagined_paths/image_raw", qos.sensor("reliable", 2)
        )
        for kind, topic, callback in (
            (ObservationMessage, "observation", self._observed),
            (SearchStatisticsMessage, "search_statistics", self._decided),
            (SearchTreeMessage, "search_tree", self._searched),
        ):
            self.create_subscription(
                kind, topic, self.guarded(topic, callback), qos.STATE, callback_group=self.work
            )
        self.diagnostics.add("views", self._report)

    def teardown(self) -> None:
        """Close the recording."""
        self.diagnostics.remove("views")
        log = self.__dict__.pop("_log", None)
        if log is not None:
            log.close()

    def clock_jumped_back(self, seconds: float) -> None:
        """What was half joined will not be completed."""
        self._joiner.clear()

    def _observed(self, message: ObservationMessage) -> None:
        self._join(to_nanoseconds(message.header.stamp), "observation", message)

    def _decided(self, message: SearchStatisticsMessage) -> None:
        self._join(to_nanoseconds(message.observation_stamp), "statistics", message)

    def _searched(self, message: SearchTreeMessage) -> None:
        self._join(to_nanoseconds(message.observation_stamp), "tree", message)

    def _join(self, stamp_ns: int, name: str, message: Any) -> None:
        parts = self._joiner.add(stamp_ns, name, message)
        if {"observation", "statistics"} - set(parts):
            return
        if parts["statistics"].nodes and "tree" not in parts:
            return
        self._joiner.forget(stamp_ns)
        self._show(parts["observation"], parts["statistics"], parts.get("tree"))

    def _show(
        self,
        seen: ObservationMessage,
        said: SearchStatisticsMessage,
        tree: SearchTreeMessage | None,
    ) -> None:
        wants_markers = self._markers.get_subscription_count() > 0
        wants_picture = self._pictures.get_subscription_count() > 0
        if not (wants_markers or wants_picture or self._log):
            return
        observation = observation_from_message(seen)
        statistics = vars(statistics_from_message(said))
        paths: tuple[ImaginedPath, ...] = ()
        if tree is not None:
            paths = imagined_paths(vars(tree_from_message(tree)), statistics)
        stamp_ns = observation.stamp_ns
        if wants_markers:
            self._markers.publish(paths_to_markers(paths, observation.ee_frame, stamp_ns))
        if wants_picture or self._log:
            name, picture = self._picture(observation, paths, statistics)
            if wants_picture and picture is not None:
                self._pictures.publish(image_to_message(picture, stamp_ns, name))
            if self._log is not None:
                self._log.add(observation, statistics, paths, picture)
        self._shown += 1

    def _picture(
        self,
        observation: Observation,
        paths: tuple[ImaginedPath, ...],
        statistics: dict[str, Any],
    ) -> tuple[str, NDArray[np.uint8] | None]:
        """The camera's name and its picture, drawn on."""
        images, wanted = observation.images, self.parameters.camera
        if wanted and wanted not in images:
            raise ConfigurationError(
                f"camera {wanted!r}: the observation has {', '.join(images) or 'no picture'}"
            )
        name = wanted or next((n for n in images if n in self._cameras), next(iter(images), ""))
        if not name:
            return "", None
        height = self.parameters.picture_height
        camera = self._cameras.get(name)
        return name, annotated(images[name], paths, statistics, camera, height)

    def _report(self) -> Report:
        values = {"decisions shown": self._shown, "calibrated": ", ".join(self._cameras)}
        return Report(Level.OK, "watching", values)


def main() -> None:
    """Run the node."""
    run(ViewNode, "view_node")


if __name__ == "__main__":
    main()
