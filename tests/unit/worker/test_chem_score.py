"""Scores of answers about molecules, against numbers that were found by hand."""

from __future__ import annotations

from math import sqrt

import pytest

pytest.importorskip("rdkit")

from hansa.worker.base import Example
from hansa.worker.tasks.chem.score import compare, elements, rouge_l, score

NOTHING = {"exact": 0, "valid": 0, "formula": 0, "morgan": 0, "maccs": 0, "rdk": 0}


def smiles(expected: str, answer: str) -> dict[str, float]:
    return dict(compare(f"<SMILES> {expected} </SMILES>", answer))


def test_a_molecule_is_the_same_however_it_is_written() -> None:
    same = smiles("CCO", "<SMILES> OCC </SMILES>")
    assert same == dict.fromkeys(NOTHING, 1)
    assert smiles("CC(=O)O.O", "<SMILES> O.OC(C)=O </SMILES>")["exact"] == 1
    # A salt has no path of bonds, so RDKit's fingerprint of it is empty.
    assert smiles("[Na+].[Cl-]", "[Cl-].[Na+]") == dict.fromkeys(NOTHING, 1)
    # Without tags, or with one that was never closed, the rest is the answer.
    assert smiles("CCO", "  OCC\n")["exact"] == 1
    assert smiles("CCO", "It is <SMILES> OCC")["exact"] == 1


def test_similar_molecules_have_the_similarity_of_their_fingerprints() -> None:
    found = smiles("CCO", "<SMILES> CCN </SMILES>")
    # Morgan: each has 3 atoms and 3 atoms with their neighbours; in common are CH3,
    # CH2 and CH3 beside CH2. RDKit's: 3 paths of 2 bits each; C-C alone in common.
    assert found["morgan"] == pytest.approx(3 / 9)
    assert found["rdk"] == pytest.approx(2 / 10)
    # MACCS keys: 9 and 10 of 166 are set, 5 of them in both.
    assert found["maccs"] == pytest.approx(5 / 14)
    assert (found["exact"], found["valid"], found["formula"]) == (0, 1, 0)


def test_isomers_have_one_formula_and_mirror_images_differ() -> None:
    isomers = smiles("CCO", "<SMILES> COC </SMILES>")
    assert (isomers["exact"], isomers["formula"]) == (0, 1)
    mirrored = smiles("C[C@H](N)C(=O)O", "<SMILES> C[C@@H](N)C(=O)O </SMILES>")
    assert (mirrored["exact"], mirrored["morgan"]) == (0, 1)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "C1CC",
        "c1cccc1",
        "C(C)(C)(C)(C)C",
        "CCO is ethanol",
        "C" * 1001,
        "\x00",
        "😀",
    ],
)
def test_what_is_no_molecule_is_wrong_and_silent(
    answer: str, capfd: pytest.CaptureFixture[str]
) -> None:
    example = Example("t", "?", "<SMILES> CCO </SMILES>")
    assert score([example], [f"<SMILES> {answer} </SMILES>"]) == {"t": NOTHING}
    assert capfd.readouterr() == ("", "")


def test_formulas_may_name_their_elements_in_any_order() -> None:
    def formula(answer: str) -> dict[str, float]:
        return dict(compare("<MOLFORMULA> C2H6O </MOLFORMULA>", answer))

    assert formula("<MOLFORMULA> C2H6O </MOLFORMULA>") == {
        "exact": 1, "valid": 1, "formula": 1,
    }  # fmt: skip
    assert formula("<MOLFORMULA> H6OC2 </MOLFORMULA>") == {
        "exact": 0, "valid": 1, "formula": 1,
    }  # fmt: skip
    assert formula("<MOLFORMULA> C2H5OH </MOLFORMULA>")["formula"] == 1
    assert formula("<MOLFORMULA> C2H6 </MOLFORMULA>")["formula"] == 0
    assert formula("ethanol")["valid"] == 0
    assert formula("<MOLFORMULA> C2H6X </MOLFORMULA>")["valid"] == 0  # no element
    assert elements("C6H5O-") == {"C": 6, "H": 5, "O": 1, "-": 1}
    assert elements("C2H6O") != elements("C2H6O+2")


def test_numbers_have_a_root_mean_square_error() -> None:
    expected = ["-1.5", "2", "10", "0.25"]
    answers = ["-2.5", "about 5", "10 deg C", "no idea"]
    examples = [Example("n", "?", f"<NUMBER> {x} </NUMBER>") for x in expected]
    tagged = [f"<NUMBER> {answer} </NUMBER>" for answer in answers]
    # Errors 1, 3 and 0; the fourth is no number.
    found = score(examples, tagged)["n"]
    assert found == {"valid": 0.75, "rmse": pytest.approx(sqrt((1 + 9 + 0) / 3))}
    # One that is out of all proportion, or none at all, is no answer.
    assert score(examples[:1], ["<NUMBER> 1e300 </NUMBER>"]) == {"n": {"valid": 0.0}}
    assert score(examples[:1], ["<NUMBER> -1e999 </NUMBER>"]) == {"n": {"valid": 0.0}}


def test_yes_and_no_texts_and_names() -> None:
    yes = "<BOOLEAN> Yes </BOOLEAN>"
    assert compare(yes, "<BOOLEAN> yes </BOOLEAN>") == {"valid": 1, "accuracy": 1}
    assert compare(yes, "No, it does not.") == {"valid": 1, "accuracy": 0}
    assert compare(yes, "Nobody knows") == {"valid": 0, "accuracy": 0}
    name = compare("<IUPAC> ethanol </IUPAC>", "<IUPAC> ethanol </IUPAC>")
    assert name == {"exact": 1, "rouge_l": 1}
    # 3 words of 5 and 4 in the same order: the, is, acid.
    caption = compare("the molecule is an acid", "the salt is acid")
    assert caption == {"exact": 0, "rouge_l": pytest.approx(2 * 3 / 9)}
    assert rouge_l(["a", "b", "c"], ["c", "b", "a"]) == pytest.approx(2 / 6)


def test_tasks_are_means_of_their_own_answers() -> None:
    examples = [
        Example("a", "?", "<SMILES> CCO </SMILES>"),
        Example("b", "?", "<BOOLEAN> No </BOOLEAN>"),
        Example("a", "?", "<SMILES> CCN </SMILES>"),
    ]
    answers = [
        "<SMILES> CCO </SMILES>",
        "<BOOLEAN> No </BOOLEAN>",
        "<SMILES> ( </SMILES>",
    ]
    found = score(examples, answers)
    assert found["a"] == dict.fromkeys(NOTHING, 0.5)
    assert found["b"] == {"valid": 1, "accuracy": 1}
