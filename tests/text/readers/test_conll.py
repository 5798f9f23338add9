"""Entities of CoNLL files and multiword expressions of CoNLL-U files stand where their text says."""

import pytest

from tokinterp.text import read_conll, read_conllu, read_conllulex

CONLL = """-DOCSTART- O

John I-PER
Smith I-PER
visited O
New I-LOC
York I-LOC
, O
" O
the O
city O
" O
( O
it O
's O
big O
) O
. O

He O
met O
Ann B-PER
Bob B-PER
Jr. I-PER
. O

-DOCSTART- O

EU S-ORG
rules O
"""


CONLLU = """# newdoc id = a
# sent_id = a-1
# newpar
# text = We can't look it up in  New York.
1\tWe\twe\tPRON\t_\t_\t4\tnsubj\t_\t_
2-3\tcan't\t_\t_\t_\t_\t_\t_\t_\t_
2\tca\tcan\tAUX\t_\t_\t4\taux\t_\t_
3\tn't\tnot\tPART\t_\t_\t4\tadvmod\t_\t_
4\tlook\tlook\tVERB\t_\t_\t0\troot\t_\t_
5\tit\tit\tPRON\t_\t_\t4\tobj\t_\t_
6\tup\tup\tADP\t_\t_\t4\tcompound:prt\t_\t_
7\tin\tin\tADP\t_\t_\t9\tcase\t_\t_
8\tNew\tNew\tPROPN\t_\t_\t9\tcompound\t_\t_
8.1\tx\tx\tX\t_\t_\t_\t_\t_\t_
9\tYork\tYork\tPROPN\t_\t_\t4\tobl\t_\tSpaceAfter=No
10\t.\t.\tPUNCT\t_\t_\t4\tpunct\t_\t_

# sent_id = a-2
# text = Wanna give up?
1-2\tWanna\t_\t_\t_\t_\t_\t_\t_\t_
1\tWant\twant\tVERB\t_\t_\t0\troot\t_\t_
2\tto\tto\tPART\t_\t_\t3\tmark\t_\t_
3\tgive\tgive\tVERB\t_\t_\t1\txcomp\t_\t_
4\tup\tup\tADP\t_\t_\t3\tcompound:prt\t_\t_
5\t?\t?\tPUNCT\t_\t_\t1\tpunct\t_\t_

# newdoc id = b
# sent_id = b-1
# text = End
1\tEnd\tend\tNOUN\t_\t_\t0\troot\t_\t_
"""


def test_conll(tmp_path):
    file = tmp_path / "a.conll"
    file.write_text(CONLL)
    read = read_conll(file)
    assert read.texts == [
        'John Smith visited New York, "the city" (it\'s big). He met Ann Bob Jr.',
        "EU rules",
    ]
    assert read.spans.strings() == ["John Smith", "New York", "Ann", "Bob Jr.", "EU"]
    assert read.spans.type.tolist() == ["PER", "LOC", "PER", "PER", "ORG"]
    file.write_text(CONLL.replace("-DOCSTART- O", ""))
    assert [len(t.split()) for t in read_conll(file).texts] == [9, 5, 2]
    file.write_text("John\n")
    with pytest.raises(ValueError, match="line 1: 'John' has no tag"):
        read_conll(file)
    file.write_text("John PER\n")
    with pytest.raises(ValueError, match=r"line 1: tag 'PER' .*is none of O, B-"):
        read_conll(file)


def test_conllu(tmp_path):
    file = tmp_path / "a.conllu"
    file.write_text(CONLLU)
    read = read_conllu(file)
    assert read.texts == ["We can't look it up in  New York. Wanna give up?", "End"]
    assert read.spans.of_kind("mwe").strings() == ["New York", "give up"]
    assert read.spans.of_kind("mwe").type.tolist() == ["compound", "compound:prt"]
    assert read.skipped == {"mwe with a gap": 1}
    words = read.spans.of_kind("pos").strings()
    assert words[:10] == ["We", "ca", "n't", "look", "it", "up", "in", "New", "York", "."]
    assert words[10:] == ["Wanna", "Wanna", "give", "up", "?", "End"]
    assert read.spans.of_kind("pos").type.tolist()[-1] == "NOUN"
    assert len(read_conllu(file, documents=False, pos=False).texts) == 3
    file.write_text(CONLLU.replace("4\tlook", "4\tlooks"))
    with pytest.raises(ValueError, match="sentence a-1: 'looks' is not found at character 9"):
        read_conllu(file)
    file.write_text(CONLLU.replace("# text = End", "#"))
    with pytest.raises(ValueError, match="sentence b-1: no '# text' line"):
        read_conllu(file)
    file.write_text("1\tEnd\n")
    with pytest.raises(ValueError, match="line 1: 2 columns"):
        read_conllu(file)
    file.write_text(CONLLU)
    with pytest.raises(ValueError, match="10 columns, not the 19"):
        read_conllulex(file)


def test_conllulex(tmp_path):
    def row(n, form, strong="_", category="_", weak="_"):
        return "\t".join([str(n), form, *"____0___", strong, category, *"___", weak, *"___"])

    lines = [
        "# sent_id = a", "# text = They turned it off at last, in time.", row(1, "They"),
        row(2, "turned", "1:1", "V.VPC.full"), row(3, "it"), row(4, "off", "1:2"), row(5, "at", "2:1", "PP"),
        row(6, "last", "2:2"), row(7, ","), row(8, "in", weak="1:1"), row(9, "time", weak="1:2"), row(10, "."),
    ]  # fmt: skip
    file = tmp_path / "a.conllulex"
    file.write_text("\n".join(lines))
    read = read_conllulex(file)
    assert read.spans.strings() == ["at last"]
    assert read.spans.type.tolist() == ["PP"]
    assert read.skipped == {"mwe with a gap": 1}
    weak = read_conllulex(file, weak=True, pos=True).spans
    assert weak.of_kind("weak mwe").strings() == ["in time"]
    assert len(weak.of_kind("pos")) == 10
