"""Files of head scores as the authors of the dual-route model write them: back as they were, others refused."""

import json

import numpy as np
import pytest
import torch

from tokinterp.attention.heads.head_scores import read_head_scores, write_head_scores


def test_files_of_scores_come_back_as_they_were(tmp_path):
    grid = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).double().numpy()
    file = tmp_path / "scores.json"
    write_head_scores(file, {"next_tok_attn": grid, "end_tok_attn": -grid})
    found = read_head_scores(file)
    assert list(found) == ["next_tok_attn", "end_tok_attn"]
    np.testing.assert_array_equal(found["end_tok_attn"], -grid)
    write_head_scores(file, {"score": grid})
    assert json.loads(file.read_text())[5] == {"layer": 1, "head_idx": 1, "score": grid[1, 1]}
    np.testing.assert_array_equal(read_head_scores(file)["score"], grid)
    write_head_scores(file, {"rank": -grid})
    best = json.loads(file.read_text())[0]
    assert tuple(best) == np.unravel_index(grid.argmax(), grid.shape)
    assert read_head_scores(file)["rank"][tuple(best)] == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not a JSON file of head scores"),
        ("3", "give a list of scores, or lists by name"),
        ("[[0, 1], [0]]", "the ranking: give for each head layer, head_idx and score"),
        ('{"a": [{"layer": 0, "score": 1}]}', "a: give for each head layer, head_idx and score"),
        ('[{"layer": 0, "head_idx": -1, "score": 1}]', "are numbers from 0"),
        ('[{"layer": 0, "head_idx": 0, "score": "1"}]', "a score is not a number"),
        ("[[0, 0], [0, 2]]", "2 scores for 1 blocks of 3 heads"),
        ("[[0, 0], [0, 0]]", "2 scores for 1 blocks of 1 heads"),
    ],
)
def test_other_files_are_refused(tmp_path, content, said):
    file = tmp_path / "scores.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=rf"scores\.json.*{said}"):
        read_head_scores(file)


def test_scores_that_no_file_holds_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"scores\['a'\].* give \(block, head\) finite numbers"):
        write_head_scores(tmp_path / "a.json", {"a": [[np.nan]]})
    with pytest.raises(ValueError, match="a ranking has a file of its own"):
        write_head_scores(tmp_path / "a.json", {"rank": [[0]], "a": [[0]]})
