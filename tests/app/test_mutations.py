"""Generated bad inputs: none breaks the service, its readers or its worker, and none makes them swell.

`HOSTILE` says how many files; `make hostile` takes thousands.
"""

from __future__ import annotations

import os
import re
import resource
from collections import Counter
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as effort
from mutations import bad_file, bad_image, sound
from scan_files import INTRINSICS, depth_map, png
from schemathesis.checks import not_a_server_error

from app.client import ProblemError
from app.main import create_app
from app.service import readers_of

COUNT = int(os.environ.get("HOSTILE", "176"))
EXPECTED = {202, 400, 413, 415, 422}
EASY = {"model": "tiny", "resolution": 32, "pose": "canonical", "refine": "false"}
SWELLING_MIB = 300
"""What reading files of 30 kB may add to the largest size that a reader has had."""


@pytest.fixture(scope="module")
def generated():
    """The bad files; the sound ones are made once."""
    return [bad_file(number) for number in range(COUNT)]


def peaks(settings):
    """The largest resident sizes that readers have had, in MiB: of those that live, and of all that ended."""
    readers = readers_of(settings.parse_slots, settings.parse_memory_bytes, settings.parse_s)
    pids = [child.process.pid for child in readers.free]
    texts = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    ended = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return [
        *(round(int(re.search(r"VmHWM:\s+(\d+)", text)[1]) / 1024) for text in texts),
        round(ended / 1024),
    ]


def test_every_sound_file_is_accepted(api_for):
    api = api_for(max_queued=1000)
    for name, data in sound().items():
        form = {"intrinsics": INTRINSICS} if name.startswith(("depth", "float", "ZIP", "PIZ")) else {}
        answer = api.post("/v1/completions?model=tiny", files={"scan": (name, data)}, data=form)
        assert answer.status_code == 202, (name, answer.text)


def test_no_bad_file_breaks_the_service_or_makes_it_swell(api_for, settings, generated):
    api = api_for(max_queued=10**6)
    before, answers, codes = max(peaks(settings), default=60), Counter(), Counter()
    for number, (name, data, form) in enumerate(generated):
        answer = api.post("/v1/completions?model=tiny", files={"scan": (name, data)}, data=form)
        assert answer.status_code in EXPECTED, (number, answer.text)
        answers[answer.status_code] += 1
        if answer.status_code != 202:
            problem = answer.json()
            codes[problem["code"]] += 1
            assert len(problem["detail"]) > 15, number
    print(f"\n{COUNT} bad files: {dict(answers)}; {dict(codes)}; readers at most {peaks(settings)} MiB")
    assert answers[422] > COUNT / 4
    assert max(peaks(settings)) < before + SWELLING_MIB
    assert api.get("/healthz").status_code == 200


def test_no_bad_image_beside_a_depth_map_breaks_the_service(api_for):
    api, depth = api_for(max_queued=10**6), png(depth_map()[0])
    for number in range(COUNT // 8):
        field = ("mask", "color_image")[number % 2]
        files = {"scan": ("d.png", depth), field: ("i", bad_image(number))}
        answer = api.post("/v1/completions?model=tiny", files=files, data={"intrinsics": INTRINSICS})
        assert answer.status_code in EXPECTED, (number, answer.text)


def test_what_was_accepted_of_bad_files_kills_no_worker(service, generated):
    """Scans that can be read and make no sense: each is completed, or fails with a reason."""
    worker, ended = service.children()["worker"], Counter()
    for name, data, form in generated:
        if ended.total() >= max(3, COUNT // 40):
            break
        try:
            made = service.client.submit(data, name, form=form, **EASY)
        except ProblemError as refused:
            assert refused.problem.status < 500
            continue
        done = service.client.wait(made.id)
        ended[done.status] += 1
        assert done.status == "succeeded" or done.error.code != "internal", done.error
    print(f"\ncompletions of bad files that could be read: {dict(ended)}")
    assert ended.total() >= 3
    assert service.children()["worker"] == worker


@pytest.mark.skipif(COUNT < 1000, reason="make hostile does this: it takes a while")
def test_no_request_that_the_document_allows_or_forbids_is_a_mistake_of_ours(settings):
    """Requests that schemathesis makes of the OpenAPI document, sound and unsound ones."""
    app = create_app(settings.model_copy(update={"max_queued": 10**6, "allow_without_keys": True}))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    schema = schema.exclude(path_regex="events").exclude(path="/readyz")
    operations = [operation.ok() for operation in schema.get_all_operations()]
    assert len(operations) > 12
    asked = Counter()
    for operation in operations:
        _few_requests(operation, asked)()
    print(f"\n{asked.total()} requests made of the document to {len(asked)} operations")


def _few_requests(operation, asked):
    """A test of one operation by hypothesis: few requests, without shrinking."""

    def ask(case):
        asked[operation.label] += 1
        case.call_and_validate(checks=[not_a_server_error], headers={"Prefer": "wait=0"})

    few = effort(
        max_examples=max(4, COUNT // 40),
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    return few(given(case=operation.as_strategy())(ask))
