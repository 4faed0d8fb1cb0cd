"""Conan 2 recipe: `conan create .`; offline or with the distribution's libraries: `-o "peft/*:with_system_libs=True"`."""

import os
import re

from conan import ConanFile
from conan.errors import ConanInvalidConfiguration
from conan.tools.build import check_min_cppstd
from conan.tools.files import copy, load
from conan.tools.gnu import PkgConfig
from conan.tools.scm import Version
from conan.tools.system.package_manager import Apt

required_conan_version = ">=2.0.9"


class PeftConan(ConanFile):
    name = "peft"
    description = "Parameter-efficient fine-tuning (LoRA and its kin) for C++, header only"
    license = "MIT"
    topics = ("lora", "peft", "fine-tuning", "llm", "header-only")
    package_type = "header-library"
    settings = "os", "arch", "compiler", "build_type"
    options = {"with_system_libs": [True, False]}
    default_options = {"with_system_libs": False}
    exports_sources = "include/*", "LICENSE"
    no_copy_source = True

    # The oldest compilers that compile the vector kernels' target regions.
    _oldest_compilers = {"gcc": "12", "clang": "14"}
    # pkg-config's name of each library, as its headers are found where the system has them.
    _system_libs = {"eigen3": [], "fmt": ["fmt"], "nlohmann_json": []}

    def set_version(self):
        header = load(self, os.path.join(self.recipe_folder, "include", "peft", "version.hpp"))
        self.version = re.search(r'PEFT_VERSION_STRING "([0-9.]+)"', header).group(1)

    def requirements(self):
        if self.options.with_system_libs:
            return
        # Their headers are included by ours; fmt is compiled, so its consumers link it.
        self.requires("eigen/[>=3.4 <6]", transitive_headers=True)
        self.requires("fmt/[>=9 <13]", transitive_headers=True, transitive_libs=True)
        self.requires("nlohmann_json/[>=3.9 <4]", transitive_headers=True)

    def system_requirements(self):
        if self.options.with_system_libs:
            Apt(self).install(["libeigen3-dev", "libfmt-dev", "nlohmann-json3-dev"], check=True)

    def package_id(self):
        self.info.clear()

    def validate(self):
        check_min_cppstd(self, 20)
        if self.settings.os != "Linux":
            raise ConanInvalidConfiguration(f"peft {self.version} runs on Linux; got os={self.settings.os}")
        compiler = str(self.settings.compiler)
        oldest = self._oldest_compilers.get(compiler)
        if oldest is None:
            raise ConanInvalidConfiguration(f"peft {self.version} needs gcc or clang; got compiler={compiler}")
        if Version(self.settings.compiler.version) < oldest:
            raise ConanInvalidConfiguration(
                f"peft {self.version} needs {compiler} {oldest} or later; got {self.settings.compiler.version}")

    def package(self):
        copy(self, "LICENSE", self.source_folder, os.path.join(self.package_folder, "licenses"))
        for pattern in ("*.hpp", "*.inc", "*.cuh"):
            copy(self, pattern, os.path.join(self.source_folder, "include"), os.path.join(self.package_folder, "include"))

    def package_info(self):
        self.cpp_info.set_property("cmake_file_name", "peft")
        main = self.cpp_info.components["peft"]
        main.set_property("cmake_target_name", "peft::peft")
        main.set_property("pkg_config_name", "peft")
        main.bindirs = []
        main.libdirs = []
        main.system_libs = ["pthread"]
        if not self.options.with_system_libs:
            main.requires = ["eigen::eigen", "fmt::fmt", "nlohmann_json::nlohmann_json"]
            return
        for name, libs in self._system_libs.items():
            part = self.cpp_info.components[f"system_{name}"]
            PkgConfig(self, name).fill_cpp_info(part, is_system=True, system_libs=libs)
            part.bindirs = []
            part.libdirs = []
            part.set_property("cmake_target_name", f"peft::system_{name}")
            part.set_property("pkg_config_name", f"peft_system_{name}")
            main.requires.append(f"system_{name}")
