"""Models of nnsight are wrapped."""

import copy

import pytest
import torch
from tiny import byte_tokenizer, some_ids, tiny_lm

import tokinterp as ti

S = ti.Site


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of saved tiny models with their tokenizer."""
    made = {}

    def folder(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            tiny_lm(family).save_pretrained(made[family])
            byte_tokenizer().save_pretrained(made[family])
        return made[family]

    return folder


def test_nnsight_objects_are_wrapped(folders, extras):
    from nnsight import LanguageModel
    from nnsight.modeling.transformers import TransformersModel

    plain = ti.load_model(folders("llama"), device="cpu")
    site = S("resid", 2)
    wanted = plain.run(some_ids(), [site])[site]
    made = [TransformersModel(tiny_lm("llama"), tokenizer=copy.deepcopy(byte_tokenizer()), task="text-generation")]
    with pytest.warns(Warning, match="LanguageModel is deprecated"):
        made.append(LanguageModel(str(folders("llama")), device_map="cpu", dispatch=True))
    for source in made:
        model = ti.wrap(source)
        assert model.info.backend == "nnsight"
        assert model.source is source
        assert model.tokenizer is not None
        assert torch.equal(model.run(some_ids(), [site])[site], wanted)
    assert "/" not in ti.wrap(made[1]).info.id, "a path of this machine in the results"
    with pytest.warns(Warning, match="LanguageModel is deprecated"):
        lazy = LanguageModel(str(folders("llama")), tokenizer=copy.deepcopy(byte_tokenizer()))
    with pytest.raises(ValueError, match=r"weights of this nnsight model are not loaded.*dispatch=True"):
        ti.wrap(lazy)
