"""A program that serves the small model of the tests with the settings of its environment."""

from __future__ import annotations

from tests.service.predictors import predictor

from tsgdn2.service.server import serve
from tsgdn2.service.settings import read_settings

if __name__ == "__main__":
    serve(read_settings(), predictor)
