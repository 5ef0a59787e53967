"""The chaos suite's long form: random faults upon real trainings, all of which end the same.

`make chaos` runs it and writes benchmarks/chaos.md. Faults, their moments and their targets are
drawn from a seed; what they meet depends on the machine's speed too.
"""

import argparse
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

from course import DECK, TRAININGS, Course, draw
from place import Place
from record import check_record
from report import report
from training import HERE, Ended, Training, write_site

WORKERS = 3
FEWEST = 50  # faults of a whole suite; a training may end before its last one comes


def main() -> int:
    parser = argparse.ArgumentParser(prog="storm")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--trainings", type=int, default=TRAININGS)
    parser.add_argument("--only", type=int, help="the number of one training of these")
    parser.add_argument("--to", type=Path, help="write the table there")
    told = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with Place() as place:
        for kind, why in place.missing.items():
            print(f"left out: {kind} ({why})")
        kinds = set(DECK) - set(place.missing)
        courses = draw(told.seed, kinds, told.trainings)
        if told.only:
            courses = [course for course in courses if course.number == told.only]
        place.heal(WORKERS)
        if any(course.recorded for course in courses):
            place.wait_for_mlflow()
        prepared, digest = undisturbed(place)
        ended: list[Ended] = []
        failed = []
        began = time.monotonic()
        for course in courses:
            try:
                ended.append(run(place, course, prepared, digest))
            except Exception:
                failed.append(course.number)
                traceback.print_exc()
        seconds = time.monotonic() - began
        text = report(ended, failed, place.missing, seed=told.seed, seconds=seconds)
    print(text)
    num_faults = sum(len(training.hits) for training in ended)
    if courses == draw(told.seed, set(DECK)) and num_faults < FEWEST:
        print(f"{num_faults} faults came, and {FEWEST} are wanted")
        return 1
    if told.to is not None and not failed:
        told.to.write_text(text)
    return 1 if failed else 0


def undisturbed(place: Place) -> tuple[Path, str]:
    """A prepared storage to copy, and the digest that every training has to end with."""
    course = Course(0, 1, False, ())
    prepared = place.folder / "prepared"
    command = [sys.executable, HERE / "driver.py", HERE / "pipeline"]
    write_site(place.folder / "site.yaml", place, prepared, 1, f"sqlite:///{place.folder}/no.db")
    quick = [*command, place.folder / "site.yaml", "model.pause_s=0"]
    subprocess.run(quick, check=True, stdout=subprocess.DEVNULL, cwd=place.folder)
    shutil.rmtree(prepared / "train")
    training = Training(place, course, prepared, mlflow=False)
    ended = training.run()
    digest: str = ended.value["model_digest"]
    print(f"undisturbed: {ended.seconds:.1f} s, digest {digest[:16]}", flush=True)
    return prepared, digest


def run(place: Place, course: Course, prepared: Path, digest: str) -> Ended:
    """One disturbed training, with the cluster made well before it."""
    place.heal(WORKERS)
    if course.recorded:
        place.wait_for_mlflow()
    print(f"training {course.number}: {course.workers} workers asked for", flush=True)
    training = Training(place, course, prepared, mlflow=course.recorded)
    ended = training.run()
    assert ended.value["model_digest"] == digest, "another digest than undisturbed"
    if course.recorded:
        place.wait_for_mlflow()
        check_record(place.mlflow_uri, training.storage, course.number, ended.value)
    worlds = ", ".join(map(str, ended.worlds))
    print(f"  the same digest after {ended.seconds:.0f} s; worlds {worlds}", flush=True)
    shutil.rmtree(training.storage)
    return ended


if __name__ == "__main__":
    sys.exit(main())
