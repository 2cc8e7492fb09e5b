"""What all tests share: one thread everywhere, and the real data where it is at hand."""

import os

# Before torch is imported here or in any subprocess: sums in one order, and two workers on two cores.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent

# Same examples in every run: a red test is a change in the code, not luck. Busy machines have no deadline.
settings.register_profile("fixed", derandomize=True, database=None, deadline=None)
settings.load_profile("fixed")


def real_data(*parts):
    """Path below the folder of real data, e.g. real_data("text", "wiki_00.txt.xz"); skips the test if it is absent."""
    folder = Path(os.environ.get("NANOCONCEPT_DATA") or ROOT.parent / "shared" / "data")
    path = folder.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no real data at {path}; set NANOCONCEPT_DATA to its folder")
    return path


@pytest.fixture(name="real_data", scope="session")
def _real_data():
    return real_data


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder of data with the corpus `toy`, not to be changed."""
    from tests.corpus import make_corpus  # late: it imports torch

    return make_corpus(tmp_path_factory.mktemp("data") / "toy").parent


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """With NANOCONCEPT_REQUIRE_DATA=1 (.ci/run sets it where the data is) a skip for want of the data is a failure."""
    report = yield
    reason = str(report.longrepr) if report.skipped and not hasattr(report, "wasxfail") else ""
    if os.environ.get("NANOCONCEPT_REQUIRE_DATA") == "1" and ("NANOCONCEPT_DATA" in reason or "shared/data" in reason):
        report.outcome, report.longrepr = "failed", f"skipped although the data is required: {reason}"
    return report
