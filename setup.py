"""What pyproject.toml cannot say: where the packages lie, and how the C++ extension is built."""

import os
import sys
import tempfile
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import find_packages, setup
from setuptools.errors import CompileError, LinkError

# The folder kernels/ is the package lrp_fast.kernels. It must never answer to `import kernels`: that name is Hugging
# Face's. Because of this mapping an editable install works through an import hook that knows the packages by name,
# and the root of the repository is not put on sys.path. lrp_fast_cli lies beside lrp_fast because whatever lies inside
# imports lrp_fast first, and with it torch and transformers.
KERNELS = ["lrp_fast.kernels", *(f"lrp_fast.kernels.{name}" for name in find_packages("kernels"))]
PACKAGES = [*find_packages(include=["lrp_fast", "lrp_fast.*", "lrp_fast_cli"]), *KERNELS]
PACKAGE_DIR = {"lrp_fast.kernels": "kernels"}

OPENMP_PROBE = "#include <omp.h>\nint main() { return omp_get_max_threads() > 0 ? 0 : 1; }\n"


class BuildNative(build_ext):
    """build_ext, optimised, and with OpenMP where the compiler has it."""

    def build_extensions(self):
        msvc = self.compiler.compiler_type == "msvc"
        openmp = ["/openmp"] if msvc else ["-fopenmp"]
        optimise = ["/O2"] if msvc else ["-O3", "-g0", "-Wall", "-Wextra"]
        if self._links(openmp):
            link_openmp = [] if msvc else openmp
        else:
            print("lrp_fast: this compiler has no OpenMP; building lrp_fast._native for one thread", file=sys.stderr)
            openmp = link_openmp = []
        for extension in self.extensions:
            extension.extra_compile_args += optimise + openmp
            extension.extra_link_args += link_openmp
        super().build_extensions()

    def _links(self, flags):
        with tempfile.TemporaryDirectory() as folder:
            source = os.path.join(folder, "probe.cpp")
            Path(source).write_text(OPENMP_PROBE)
            try:
                objects = self.compiler.compile([source], output_dir=folder, extra_postargs=flags)
                self.compiler.link_executable(
                    objects, "probe", output_dir=folder, extra_postargs=flags, target_lang="c++"
                )
            except (CompileError, LinkError):
                return False
        return True


setup(
    packages=PACKAGES,
    package_dir=PACKAGE_DIR,
    ext_modules=[
        Pybind11Extension(
            "lrp_fast._native",
            sources=sorted(str(path) for path in Path("csrc").glob("*.cpp")),
            depends=sorted(str(path) for path in Path("csrc").glob("*.hpp")),
            include_dirs=["csrc"],
            cxx_std=17,
        )
    ],
    cmdclass={"build_ext": BuildNative},
)
