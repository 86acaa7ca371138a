"""What pages call by a name of the hub is there, as it would be, and nothing else."""

from itertools import islice

import pytest

from pipeline import verbs
from pipeline.lm.hub import ModelFiles
from pipeline.lm.model import LanguageModel
from pipeline.mnist.images import open_images
from pipeline.text.open import open_text

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_a_new_folder", "hub")]

MODEL = "EleutherAI/pythia-70m-deduped"
TEXTS = {
    "openwebtext": "Skylion007/openwebtext",
    "wikitext": "Salesforce/wikitext:wikitext-103-raw-v1@test",
    "arithmetic": "EleutherAI/arithmetic:arithmetic_1dc@validation",
}


def test_the_model_has_the_layers_of_its_namesake_and_a_harvest_from_it_is_a_thousandth():
    model = LanguageModel.from_pretrained(MODEL, device="cpu")
    assert (model.shape.n_layers, model.n_vocab) == (6, 3072)
    told = verbs.harvest(
        model=MODEL, text=TEXTS["openwebtext"], sites=["mlp_out.5"], tokens="2M", out="a.actstore"
    )
    assert told.n_rows == 2048
    again = verbs.harvest(sites=["mlp_out.2"], tokens=256, out="b.actstore")
    assert again.n_rows == 256


@pytest.mark.parametrize("name", TEXTS)
def test_texts_have_documents_from_any_number_on(name):
    text = open_text(TEXTS[name])
    documents = [*islice(text.documents(), 5)]
    assert [*islice(text.documents(2), 3)] == documents[2:]
    assert min(map(len, documents)) > 10 and text.fingerprint().startswith("commit:")


def test_a_question_is_followed_by_its_answer():
    (first,) = islice(open_text(TEXTS["arithmetic"]).documents(), 1)
    question, answer = first.split("\nAnswer: ")
    assert question.startswith("Question: ") and int(answer) is not None


def test_images_are_labelled_and_set_apart():
    images = open_images("ylecun/mnist")
    assert (images.side, len(images.train), len(images.test)) == (28, 500, 100)


def test_another_name_is_not_asked_for_elsewhere():
    with pytest.raises(pytest.fail.Exception, match="no stand-in for the model"):
        ModelFiles("some/model").need("config.json")
    with pytest.raises(pytest.fail.Exception, match="no stand-in for the text"):
        next(open_text("some/text").documents())
