"""Stands in for a ConanCenter package where its server is out of reach: the distribution's library under Conan's name.

conan create . --name fmt --version 9.1.0
"""

from conan import ConanFile
from conan.tools.gnu import PkgConfig


class StandIn(ConanFile):
    package_type = "shared-library"
    settings = "os", "arch", "compiler", "build_type"
    _pkg_config = {"eigen": ("eigen3", []), "fmt": ("fmt", ["fmt"]), "nlohmann_json": ("nlohmann_json", [])}

    def package_info(self):
        name, libs = self._pkg_config[self.name]
        PkgConfig(self, name).fill_cpp_info(self.cpp_info, is_system=True, system_libs=libs)
        self.cpp_info.bindirs = []
        self.cpp_info.libdirs = []
