"""What fails is told by class, node and last words; the rest finishes, and the exit status says that something is missing."""

from __future__ import annotations

import pytest

from kdbench.slurm.submissions import Submissions
from tests.slurm.conftest import SUITE, Lab

pytestmark = pytest.mark.slurm

FAILING = SUITE.replace(
    "repeats: 1",
    """  kd:
  raises: {loss: "parts.py:Raises", weight: 1}
  diverges: {loss: "parts.py:Diverges", weight: 1}
  eats: {loss: "parts.py:Eats", weight: 1}
repeats: 1""",
)


def test_losses_that_raise_diverge_or_eat_their_memory_leave_the_others_alone_and_are_told_apart(lab: Lab) -> None:
    lab.write(suite=FAILING, pause_s=0.0, cluster=lab.cluster.replace("side_by_side: 4", "side_by_side: 8") + "bigger:\n  - {mem_gb: 2}\n")
    output = lab.submit("--wait", status=1)
    page = lab.kdbench("status", "disturbed", "--why", status=1)

    assert "3 of 6 cells have no result" in page
    assert "1 diverged: the loss or a weight is NaN or infinite at step 3" in page
    assert "raised: RuntimeError: no such luck" in page and "parts.py" in page
    assert "host memory: job" in page and "tried alone 2 times, the last time with mem_gb 2" in page and "never reduced" in page
    # In company, alone, alone with more: and each time the others went on.
    eater = next(row.id for row in lab.store.manifest("disturbed").cells if row.objective == "eats")
    tries = [
        (submission.request["mem_gb"], len(submission.cells(index)))
        for submission in lab.submissions()
        for index in range(len(submission.elements))
        if eater in submission.cells(index)
    ]
    assert tries == [(1.5, 5), (1.5, 1), (2.0, 1)]
    assert "node" in page and page in output
    # The exit status is the tables' concern, too: an undisturbed run lacks the same results.
    done = [cell_id for cell_id in lab.cells() if lab.store.is_done(cell_id)]
    assert len(done) == 4


def test_a_teacher_below_its_gate_blocks_its_students_with_its_name_and_no_job_is_wasted_on_them_again(lab: Lab) -> None:
    lab.write(suite=SUITE.replace("min_top1: 0.0", "min_top1: 0.99"), pause_s=0.0)
    output = lab.submit("--wait", status=1)
    (teacher,) = lab.cells("teacher")

    page = lab.kdbench("status", "disturbed", "--why", status=1)
    assert f"blocked by teacher {teacher}" in page and "below the required 99.00 %" in page
    assert "submitted" in output and len(lab.submissions()) == 2
    lab.submit("--wait", status=1)
    assert len(lab.submissions()) == 2


def test_a_student_whose_teacher_is_still_alive_submits_itself_behind_it(lab: Lab) -> None:
    lab.submit()
    teacher, student = (submission for submission in lab.submissions())
    # Once its process is there: a job that is suspended before its step begins does not come back.
    lab.until(lambda: Submissions(lab.store).events(teacher, 0)[0], "the teacher's process")
    lab.slurm("scontrol", "suspend", str(teacher.job))
    # Not to be waited for any more, the student's job begins beside its teacher's.
    lab.slurm("scontrol", "update", f"jobid={student.job}", "dependency=")
    lab.until(lambda: len(lab.submissions()) == 3, "a submission behind the teacher")
    lab.slurm("scontrol", "resume", str(teacher.job))
    lab.until_quiet()

    assert lab.submissions()[2].after == [str(teacher.job)]
    lab.equals_undisturbed()


def test_cancelling_one_cell_of_a_job_lets_its_neighbours_go_on(lab: Lab) -> None:
    lab.write(suite=SUITE.replace("repeats: 1", '  second: {loss: "parts.py:Slow", weight: 0.2}\nrepeats: 1'))
    lab.submit()
    lab.in_training()
    first, second = lab.cells("student")
    assert "1 job cancelled" in lab.kdbench("cancel", "disturbed", first)
    lab.until(lambda: lab.store.is_done(second), "the neighbour's result")
    lab.until_quiet()

    assert not lab.store.is_done(first)
    assert "cancelled by `kdbench cancel`" in lab.kdbench("status", "disturbed", "--why", status=1)
    lab.submit("--wait")
    lab.equals_undisturbed()
    assert "there are no jobs to cancel" in lab.kdbench("cancel", "disturbed")
