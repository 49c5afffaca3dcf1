"""Compiles the optional native library; all else is in pyproject.toml, whose own table for this is experimental.

Without a compiler, or with one that cannot do it, the install goes on and the scans run in torch. The library is no
Python module: one file serves every Python, so it has a plain name and the wheel a plain tag. It carries the
fingerprint of its sources, so that one left over from other sources is refused when loaded.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

FOLDER = Path("kernels", "native")
FINGERPRINT = 'extern "C" __attribute__((visibility("default"))) const char *tsgdn2_sources() {{ return "{}"; }}\n'
NATIVE = Extension(
    "tsgdn2.kernels.native._native",
    sources=sorted(str(path) for path in FOLDER.glob("*.cpp")),
    depends=["setup.py"],  # of the headers the fingerprint knows
    language="c++",
    optional=True,
    # -fno-wrapv and -g0 undo what some Pythons are built with. No -ffast-math: the exponential rounds by adding.
    extra_compile_args=[
        *("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-wrapv"),
        *("-fno-exceptions", "-fno-rtti", "-fvisibility=hidden", "-pthread", "-g0"),
    ],
    # Nothing of libstdc++ is used, so nothing of it is asked for at run time.
    extra_link_args=["-pthread", "-static-libstdc++", "-static-libgcc"],
)

spec = spec_from_file_location("library", FOLDER / "library.py")
library = module_from_spec(spec)
spec.loader.exec_module(library)


class Library(build_ext):
    """The build of the library; when it fails, no older one goes into the wheel in its place."""

    def get_ext_filename(self, fullname: str) -> str:
        """The name that library.py looks for, without the version of Python in it."""
        return str(Path(*fullname.split(".")[:-1], library.NAME))

    def build_extension(self, ext: Extension) -> None:
        """Add the fingerprint to the sources and compile them side by side."""
        generated = Path(self.build_temp, "fingerprint.cpp")
        text = FINGERPRINT.format(library.fingerprint(FOLDER))
        if not generated.exists() or generated.read_text() != text:  # a newer source: the library is built again
            generated.parent.mkdir(parents=True, exist_ok=True)
            generated.write_text(text)
        ext.sources = [*ext.sources, str(generated)]
        in_order = self.compiler.compile

        def at_once(sources: list[str], **options: object) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return [name for names in pool.map(lambda path: in_order([path], **options), sources) for name in names]

        self.compiler.compile = at_once
        try:
            super().build_extension(ext)
        except Exception:
            Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
            raise
        finally:
            self.compiler.compile = in_order


class Wheel(bdist_wheel):
    """A wheel for any Python 3 on this platform."""

    def get_tag(self) -> tuple[str, str, str]:
        """Python, ABI of Python, platform."""
        return "py3", "none", super().get_tag()[2]


setup(ext_modules=[NATIVE], cmdclass={"build_ext": Library, "bdist_wheel": Wheel})
