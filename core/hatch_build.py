"""Build hook of the wheel, editable or not: compiles the CPU kernels. Without a compiler the wheel is pure Python."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeBuildHook(BuildHookInterface):
    """Puts the library into the package and names the platform in the wheel's tag."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before the files are collected."""
        spec = importlib.util.spec_from_file_location("zoo_native_build", Path(self.root, "native", "build.py"))
        assert spec is not None
        assert spec.loader is not None
        builder = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(builder)
        try:
            library = builder.build()
        except builder.BuildError as error:
            self.app.display_warning(f"zoo-core is installed without CPU kernels, the slow reference runs: {error}")
            return
        build_data["artifacts"].append(f"/src/zoo/_native/{library.name}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{builder.platform_tag(library)}"
