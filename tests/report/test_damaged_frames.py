"""Damaged frames and folders: each is refused in one sentence that says what is wrong and where, or is read right."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pytest

from kdbench.errors import KdbenchError
from kdbench.store.frame_files import load_frame
from kdbench.store.from_file import of_rows, read

FRAMES = Path(__file__).parent / "frames"
HEADER = "dataset,teacher,student,objective,repeat,top1_last"
ROWS = [f"d,t,s,{name},{repeat},{0.5 + 0.1 * (name == 'kd') + 0.01 * repeat}" for name in ("ce", "kd") for repeat in range(3)]
SOUND = "\n".join([HEADER, *ROWS, ""])


def changed(line: int, old: str, new: str) -> str:
    """The sound file with a change in one line; the header is line 1."""
    lines = SOUND.split("\n")
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    return "\n".join(lines)


def column(name: str, values: list[str]) -> str:
    return "\n".join([f"{HEADER},{name}", *(f"{row},{value}" for row, value in zip(ROWS, values, strict=True)), ""])


REFUSED = {
    "nothing in it": ("", "the file is empty"),
    "blank lines only": ("\n\n \n", "the file is empty"),
    "only comments": ("# mine\n", "the file is empty"),
    "only a header": (HEADER + "\n", "it has no rows"),
    "another table": ("a,b\n1,2\n", "no column dataset, student, objective, <metric>_last"),
    "no student": (changed(1, "student", "x"), "no column student"),
    "no metric": (changed(1, "top1_last", "x"), "no column <metric>_last"),
    "no metric, but its value": (changed(1, "top1_last", "acc"), "the column 'acc' has an unknown name; rename it to 'top1_last'"),
    "seed": (changed(1, "repeat", "seed"), "the column 'seed' has an unknown name; rename it to 'repeat'"),
    "Run": (changed(1, "repeat", "Run"), "the column 'Run' has an unknown name; rename it to 'repeat'"),
    "repeats": (changed(1, "repeat", "repeats"), "the column 'repeats' has an unknown name; rename it to 'repeat'"),
    "method": (changed(1, "objective", "method"), "the column 'method' has an unknown name; rename it to 'objective'"),
    "loss": (changed(1, "objective", "loss"), "the column 'loss' has an unknown name; rename it to 'objective'"),
    "Teacher": (changed(1, "teacher", "Teacher"), "the column 'Teacher' has an unknown name; rename it to 'teacher'"),
    "semicolons": (SOUND.replace(",", ";"), "The columns seem to be separated by ';': separate them by commas"),
    "tabs": (SOUND.replace(",", "\t"), r"The columns seem to be separated by '\t': separate them by commas"),
    "a header twice": (SOUND + SOUND, "line 8 is the header again: remove it"),
    "a column twice": (changed(1, "teacher", "dataset"), "the column 'dataset' is there twice"),
    "a short row": (changed(4, ",2,0.52", ",2"), "line 4 has 5 values, and the header has 6 columns"),
    "a long row": (changed(4, "0.52", "0,52"), "line 4 has 7 values, and the header has 6 columns"),
    "after a comment": ("# mine\n\n" + changed(4, "0.52", "0,52"), "line 6 has 7 values"),
    "an open quote": (changed(4, "ce", '"ce'), "line 7 is not CSV"),
    "blanks around a name": (changed(7, "kd,2", " kd\N{NO-BREAK SPACE},1"), "line 6 and line 7 are the same run (dataset d"),
    "an unseen blank": (
        changed(7, "kd", "kd\N{ZERO WIDTH SPACE}"),
        r"objective is 'kd\u200b' (line 7): it must have visible characters only",
    ),
    "a blank within": (changed(7, "kd", "k\N{NO-BREAK SPACE}d"), "it must have visible characters only"),
    "an escape": (changed(7, "kd", "\x1b[31mkd"), "(line 7): it must have visible characters only"),
    "a line end in a name": (changed(7, "kd", '"k\nd"'), "(line 8): it must have visible characters only"),
    "a name of blanks": (changed(3, "ce", "  "), "objective is empty (line 3): it must be filled"),
    "no dataset": (changed(3, "d,t", ",t"), "dataset is empty (line 3)"),
    "repeat without end": (changed(3, ",1,", ",1e30,"), "repeat is '1e30' (line 3): it must be a whole number from 0 to 1e+12"),
    "repeat negative": (changed(3, ",1,", ",-1,"), "repeat is '-1' (line 3): it must be a whole number"),
    "repeat fractional": (changed(3, ",1,", ",1.5,"), "repeat is '1.5' (line 3): it must be a whole number"),
    "repeat of both kinds": (changed(3, ",1,", ",l,"), "repeat is '0' (line 2): it must be a name, as in other rows, or all rows"),
    "per cent": (
        changed(3, "0.51", "51.0"),
        "(line 3): it must be a fraction between 0 and 1; is it in per cent? Divide the column by 100",
    ),
    "a huge value": (changed(3, "0.51", "1e300"), "top1_last is 1e+300 (line 3): it must be a fraction between 0 and 1"),
    "a huge loss": (column("nll_last", ["1", "1", "1e300", "1", "1", "1"]), "nll_last is 1e+300 (line 4): it must be a finite number"),
    "a loss without end": (column("nll_last", ["1", "1", "inf", "1", "1", "1"]), "nll_last is inf (line 4): it must be a finite number"),
    "a negative accuracy": (changed(3, "0.51", "-5"), "top1_last is -5.0 (line 3): it must be a fraction"),
    "words": (changed(3, "0.51", "good"), "top1_last is 'good' (line 3): it must be a number"),
    "digits with marks": (changed(3, "0.51", "0_51"), "top1_last is '0_51' (line 3): it must be a number"),
    "50k": (column("n_train", ["50k"] * 6), "n_train is '50k' (line 2): it must be a number"),
    "teacher seed": (column("teacher_seed", ["s0"] * 6), "teacher_seed is 's0' (line 2): it must be a number"),
    "a state of its own": (column("state", ["done"] * 6), "state is 'done' (line 2): it must be one of finished, diverged"),
    "a role of its own": (column("role", ["Student"] * 6), "role is 'Student' (line 2): it must be one of student, teacher"),
    "teachers only": (column("role", ["teacher"] * 6), "no run of a student is finished"),
    "nothing finished": (column("state", ["failed"] * 6), "no run of a student is finished"),
    "one run twice": (
        SOUND + ROWS[2] + "\n",
        "line 4 and line 8 are the same run (dataset d, teacher t, student s, objective ce, repeat 2",
    ),
    "an id twice": (column("id", ["a"] * 6), "id is 'a' (line 3): it must name one run only, and another row has it"),
    "no id": (column("id", ["a", "", "c", "d", "e", "f"]), "id is empty (line 3)"),
    "an unknown metric": (changed(1, "top1_last", "sharpness_last"), "unit and direction of the metric 'sharpness'"),
    "UTF-16": (SOUND.encode("utf-16"), "it holds zero bytes: it is UTF-16"),
    "Latin-1": (changed(3, "ce", "cé").encode("latin-1"), "line 3 is not UTF-8"),
    "zero bytes": (SOUND.encode() + bytes(20), "it holds zero bytes"),
}
"""What is in the file, and what its error says."""

READ = {
    "a byte-order mark": "\ufeff" + SOUND,
    "line ends of Windows": SOUND.replace("\n", "\r\n"),
    "old line ends": SOUND.replace("\n", "\r"),
    "blank lines": SOUND.replace("\n", "\n\n"),
    "empty rows of a spreadsheet": SOUND + ",,,,,\n",
    "blanks in names and header": SOUND.replace(",kd,", ", kd\N{NO-BREAK SPACE},").replace(",repeat,", ", repeat ,"),
    "an index that was written along": "\n".join(f"{'' if place == 0 else place},{line}" for place, line in enumerate([HEADER, *ROWS])),
    "repeats with a point": SOUND.replace(",2,", ",2.0,"),
    "repeats in words": SOUND.replace(",0,", ",s0,").replace(",1,", ",s1,").replace(",2,", ",s2,"),
    "a column of blanks": column("host", ["  "] * 6),
    "an escape in a reason": column("why", ["\x1b[31mred"] * 6),
    "everything quoted": "\n".join(",".join(f'"{box}"' for box in line.split(",")) for line in [HEADER, *ROWS]),
    "a comment before": "# of mine, 5\" discs\n" + SOUND,
}  # fmt: skip


def error_of(path: Path, name: str = "") -> str:
    try:
        read(path)
    except KdbenchError as error:
        return str(error)
    pytest.fail(f"{name or path} was read")


def test_each_damaged_file_is_refused_with_what_and_where(tmp_path):
    assert len(REFUSED) > 40
    path = tmp_path / "mine.csv"
    for name, (text, message) in REFUSED.items():
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        error = error_of(path, name)
        assert error.startswith(f"{path}: ") and message in error, f"{name}: {error}"
        assert "\x1b" not in error and "\n" not in error, name


def test_what_only_looks_damaged_is_read_right(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(SOUND)
    columns = ["dataset", "teacher", "student", "objective", "repeat", "top1_last"]
    wanted = read(path)
    for name, text in READ.items():
        path.write_bytes(text.encode())
        found = read(path)
        pd.testing.assert_frame_equal(found.runs[columns], wanted.runs[columns])
        assert found.manifest.repeats == 3 and found.manifest.baselines == ("ce", "kd"), name
        assert "\x1b" not in "".join(found.runs["why"]), name


def test_the_given_cases_are_refused_or_counted_right():
    for name, message in {
        "28_huge_repeat": "repeat is '1e+30' (line 4): it must be a whole number from 0 to 1e+12",
        "33b_trailing_space": "line 2 and line 7 are the same run (dataset d, teacher t1, student s1, objective ce, repeat 0",
        "35b_dup_header": "the column 'dataset' is there twice",
        "36_ragged": "line 42 has 4 values, and the header has 6 columns",
        "47_seed_col_instead_of_repeat": "the column 'seed' has an unknown name; rename it to 'repeat'",
    }.items():
        assert message in error_of(FRAMES / f"{name}.csv"), name
    for name, rows in {"17_missing_repeat": 40, "46b_seed_missing_some": 50, "51_best_loss_has_empty_values": 40, "kd2x4x8": 290}.items():
        found = read(FRAMES / f"{name}.csv")
        assert len(found.runs) == rows and found.manifest.repeats == 5, name


def test_folders_and_what_is_no_table_are_refused(tmp_path):
    folder = tmp_path / "mine.csv"
    folder.mkdir()
    assert error_of(folder) == f"{folder} is no file: {folder} is a folder"
    (folder / "other.csv").write_text(SOUND)
    (folder / "frame.csv").write_text(SOUND)
    assert error_of(folder).endswith(f"is a folder; did you mean {folder / 'frame.csv'}?")
    assert error_of(folder / "frames.csv").endswith("frames.csv; did you mean 'frame.csv'?")
    assert "there is no file" in error_of(tmp_path / "none" / "frame.csv")
    assert len(load_frame(folder)) == 6
    parquet = tmp_path / "mine.parquet"
    sound = pd.read_csv(io.StringIO(SOUND))
    sound.to_parquet(parquet)
    for raw in (b"no parquet", parquet.read_bytes()[:200], b""):
        parquet.write_bytes(raw)
        assert "it is no Parquet file" in error_of(parquet)
    sound.assign(top1_last=True).to_parquet(parquet)
    assert "top1_last is True (row 1): it must be a number" in error_of(parquet)
    sound.assign(objective=[["ce"]] * 6, repeat=range(6)).to_parquet(parquet)
    assert read(parquet).runs["objective"].nunique() == 1


def test_files_beside_a_frame_are_refused_by_their_name(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(SOUND)
    wrong = {
        "costs.csv": ("a,b\n1,2\n", "costs.csv beside it: it has no column dataset"),
        "histories.csv": ("role\n\x00", "histories.csv beside it: it holds zero bytes"),
        "terms.csv": ("objective\nce\n", "terms.csv beside it: it has no column label"),
        "images_intervals.csv": ("", "images_intervals.csv beside it: the file is empty"),
        "manifest.json": ("{", "manifest.json beside it is damaged"),
    }
    for name, (text, message) in wrong.items():
        (tmp_path / name).write_text(text)
        assert message in error_of(path), name
        (tmp_path / name).unlink()
    header = "dataset,teacher,student,objective,repeat,teacher_seed,id,nll,ece,confidence,agreement,agreement_block,why"
    for twice in ("a", "b"):
        rows = [f"d,t,s,kd,0,0,{name},1,0.1,0.5,0.5,0.5,\n" for name in ("a", twice)]
        (tmp_path / "images_predictions.csv").write_text("".join([f"{header}\n", *rows]))
        assert f"images_predictions.csv beside it: id is '{twice}' (line 3): it must be the only run of its repeat" in error_of(path)
    (tmp_path / "images_predictions.csv").unlink()
    header = "role,teacher,student,objective,repeat,teacher_seed,id,epoch,lr,loss,term,raw,weighted,gradient_ratio"
    (tmp_path / "histories.csv").write_text(f"{header}\nstudent,t,s,kd,0,0,a,0,0.1,high,task,1,1,\n")
    assert "histories.csv beside it: loss is 'high' (line 2): it must be a number" in error_of(path)


def test_rows_that_lie_in_no_file_are_counted_from_one():
    rows = pd.read_csv(io.StringIO(SOUND)).assign(top1_last=[0.5, 2.0, 0.5, 0.5, 0.5, 0.5])
    with pytest.raises(KdbenchError, match=r"top1_last is 2.0 \(row 2\)"):
        of_rows(rows, "mine")
