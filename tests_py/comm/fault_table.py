"""The fault table: python tests_py/comm/fault_table.py [threads] [gloo] [mpi] [namespaces]; exit 1 if one is wrong.

A row is right when every rank ends as faults.py says and in time, caches are untouched or fully written, the group is
given up, and the same processes go on to the next row.
"""

import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import faults
import teams

from sparsespan.comm import ThreadComm

sys.path.pop(0)
SLACK = 4.0


def on_threads(fault, ranks=4):
    """How each rank ended, as teams report it; the culprit is the main thread, the one that Ctrl-C interrupts."""
    ends = [None] * ranks
    comms = list(ThreadComm(ranks))

    def rank(r):
        ends[r] = faults.suffer(fault, comms[r])

    others = [r for r in range(ranks) if r != faults.CULPRIT]
    team = [threading.Thread(target=rank, args=(r,), daemon=True) for r in others]
    for thread in team:
        thread.start()
    rank(faults.CULPRIT)
    for thread in team:
        thread.join(20)
    assert None not in ends, f"{fault.name}: a rank hangs: {ends}"
    return ends


def rows(backend):
    """(fault, ends, exit codes or None) for each row of one backend."""
    if backend == "threads":
        return [(fault, on_threads(fault), None) for fault in faults.of("threads")]
    names = [fault.name for fault in faults.of(backend)]
    if backend == "gloo":
        team = teams.gloo(4, [*names, "killed"])
        return [(faults.BY_NAME[n], team.jobs[n], team.codes if n == "killed" else None) for n in [*names, "killed"]]
    if backend == "mpi":
        team, shot = teams.mpi(4, names), teams.mpi(2, ["killed"])
        return [(faults.BY_NAME[n], team.jobs[n], None) for n in names] + [(faults.BY_NAME["killed"], [], shot.codes)]
    with teams.two_namespaces() as spaces:
        team = teams.gloo_across(spaces, ["raises", *names])
    return [(faults.BY_NAME[n], team.jobs[n], None) for n in ["raises", *names]]


def line(backend, fault, ends, codes):
    def words(chosen):
        return "/".join(sorted({end["word"] + (f"({end['field']})" if end["field"] else "") for end in chosen})) or "-"

    try:
        faults.judge(fault, ends, SLACK)
        verdict = "ok" if ends or any(codes) else "WRONG: exit code 0"
    except AssertionError as error:
        verdict = f"WRONG: {error}"
    culprit = [end for end in ends if end["rank"] == faults.CULPRIT]
    others = [end for end in ends if end["rank"] != faults.CULPRIT]
    seconds = f"{max(end['seconds'] for end in ends):.2f}" if ends else "-"
    told = words(others) if ends else f"mpirun exits {codes[0]}"
    return f"{backend:10} {fault.injected:40} {words(culprit):24} {told:30} {seconds:>7}  {verdict}"


def main(backends):
    print(f"every operation times out after {faults.TIMEOUT:g} s; rank 1 is the culprit")
    print(f"{'backend':10} {'injected (rank 1)':40} {'it ends with':24} {'the others end with':30} {'seconds':>7}")
    wrong = 0
    for backend in backends:
        for fault, ends, codes in rows(backend):
            text = line(backend, fault, ends, codes)
            wrong += "WRONG" in text
            print(text, flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["threads", "gloo", "mpi", "namespaces"]))
