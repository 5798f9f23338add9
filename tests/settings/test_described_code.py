"""What a compiled function reads, imports and writes to."""

from tokinterp.settings.described_code import code_parts, mutated, walk

K = [0]


def test_globals_are_read_with_their_attributes_also_inside():
    def outer(x):
        import json

        return [np.linalg.norm(y, ord=K) for y in x], json.dumps, lambda z: torch.float32  # noqa: F821

    _, used, imported = code_parts(outer.__code__)
    assert {("np", "linalg", "norm"), ("K",), ("torch", "float32")} <= used
    assert imported == {"json"}
    assert len(list(walk(outer.__code__))) >= 2


def test_other_code_has_other_parts():
    def parts(f):
        return code_parts(f.__code__)[0][0], code_parts(f.__code__)[0][2]

    assert parts(lambda x: x + 1) == parts(lambda x: x + 1)
    assert parts(lambda x: x + 1) != parts(lambda x: x + 2)
    assert parts(lambda x: x + 1) != parts(lambda x: x - 1)


def test_what_is_written_to_is_found():
    captured, count, table = [], 0, {}

    def changes(x):
        nonlocal count
        count += 1
        captured.append(x)
        table[x] = 1
        K[0] = x
        mine = []
        mine.append(x)

    def reads(x):
        return captured[0] + count + table[x] + K[0]

    assert mutated(changes.__code__) == {"captured", "count", "table", "K"}
    assert mutated(reads.__code__) == set()

    def own(self):
        self.n = 1

    assert mutated(own.__code__) == set()
    assert mutated(own.__code__, attributes=True) == {"n"}
