"""The Python client's informer through kills of the server, ends of watches and compaction: it sees what was acknowledged,
each of it once. The model is that of ../src/model.rs: each name has one writer, so that its writes stand in one order, and
what an informer sees is a walk along it."""

import logging
import os
import random
import threading
import time
import unittest

from kubernetes import client
from kubernetes.client.exceptions import ApiException
from kubernetes.informer import SharedInformer

from server import Server, until

KILLS = int(os.environ.get("SVCNET_CONFORMANCE_KILLS", "5"))
NAMESPACE = "default"
END = "end"
# It tells of each connection that a kill has cut.
logging.getLogger("kubernetes.informer").setLevel(logging.CRITICAL)


class Writer(threading.Thread):
    """Writes under names of its own, and knows what was acknowledged: `("put", value, revision)` or `("delete",)`."""

    def __init__(self, server, number):
        super().__init__(daemon=True)
        # Left to itself the client sends a deletion again whose answer was lost, and then tells that there is nothing to delete.
        self.core = client.CoreV1Api(server.client(retries=False))
        self.number = number
        self.random = random.Random(number)
        self.acknowledged = {}
        self.count = 0
        self.stopped = threading.Event()
        self.failure = None

    def run(self):
        try:
            while not self.stopped.is_set():
                name = f"w{self.number}-{self.random.randrange(4)}"
                ops = self.acknowledged.setdefault(name, [])
                if ops and ops[-1][0] == "put" and self.random.randrange(4) == 0:
                    self.delete(name)
                else:
                    self.put(name, f"{self.number}-{self.count}")
                self.count += 1
        except BaseException as failure:  # Told by whoever waits for it.
            self.failure = failure

    def put(self, name, value):
        ops = self.acknowledged.setdefault(name, [])
        body = client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name), data={"value": value})
        while True:
            try:
                if ops and ops[-1][0] == "put":
                    made = self.core.replace_namespaced_config_map(name, NAMESPACE, body)
                else:
                    made = self.core.create_namespaced_config_map(NAMESPACE, body)
            except Exception as error:
                away(error)
                made = self.find(name)
                if made is None or made.data.get("value") != value:
                    continue
            ops.append(("put", value, int(made.metadata.resource_version)))
            return

    def delete(self, name):
        while True:
            try:
                self.core.delete_namespaced_config_map(name, NAMESPACE)
            except Exception as error:
                away(error)
                if self.find(name) is not None:
                    continue
            self.acknowledged[name].append(("delete",))
            return

    def find(self, name):
        """What is there, as soon as there is a server again."""
        while True:
            try:
                return self.core.read_namespaced_config_map(name, NAMESPACE)
            except ApiException as error:
                if error.status == 404:
                    return None
                away(error)
            except Exception as error:
                away(error)
            time.sleep(0.05)


def away(error):
    """A server that is away, or going, is no reason to stop; a refusal is a fault."""
    if isinstance(error, ApiException) and error.status and error.status < 500 and error.status != 429:
        raise error


class Recorded(SharedInformer):
    """The informer, and what it saw."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.seen = []
        self.ended = threading.Event()
        self.lists = 0
        self.listing = False
        for kind in ("ADDED", "MODIFIED", "DELETED"):
            self.add_event_handler(kind, lambda o, kind=kind: self.note(kind, o))

    def note(self, kind, o):
        if not (o.data or {}).get("value"):
            return
        # What a list brings is told of as events too, by this informer's own choice.
        if not self.listing:
            self.seen.append((kind, o.metadata.name, o.data["value"], int(o.metadata.resource_version)))
        if o.metadata.name == END:
            self.ended.set()

    def _initial_list(self):
        self.listing = True
        try:
            super()._initial_list()
        finally:
            self.listing = False
        self.lists += 1
        objects = {o.metadata.name: (o.data["value"], int(o.metadata.resource_version))
                   for o in self.cache.list() if (o.data or {}).get("value")}
        self.seen.append(("LIST", int(self._resource_version), objects))


def disagreements(acknowledged, seen):
    """As `model::disagreements`."""
    wrong, places, last = [], {}, 0
    for one in seen:
        if one[0] == "LIST":
            _, revision, objects = one
            if revision < last:
                wrong.append(f"a list of {revision} comes after {last}")
            last = revision
            for name, ops in acknowledged.items():
                fits = set()
                for at in range(min(places.get(name, {0})), len(ops) + 1):
                    before = ops[at - 1] if at else ("delete",)
                    shown = before == ("put", *objects[name]) if name in objects else before == ("delete",)
                    passed = all(op[0] != "put" or op[2] <= revision for op in ops[:at])
                    ahead = all(op[0] != "put" or op[2] > revision for op in ops[at:])
                    if shown and passed and ahead:
                        fits.add(at)
                if not fits:
                    wrong.append(f"{name}: a list of {revision} shows {objects.get(name)}: {ops}")
                places[name] = fits or {0}
            continue
        kind, name, value, revision = one
        if revision <= last:
            wrong.append(f"{one} comes after {last}")
        last = max(last, revision)
        ops, reached = acknowledged.get(name, []), set()
        for at in places.get(name, set()):
            if at >= len(ops):
                continue
            adds = at == 0 or ops[at - 1] == ("delete",)
            told = ("delete",) if kind == "DELETED" else ("put", value, revision)
            if ops[at] == told and (kind == "DELETED" or adds == (kind == "ADDED")):
                reached.add(at + 1)
        if not reached:
            wrong.append(f"{one} is not the next of {name}, which is after {places.get(name)} of {ops}")
            continue
        places[name] = reached
    for name, ops in acknowledged.items():
        if len(ops) not in places.get(name, set()):
            wrong.append(f"{name}: {len(ops)} writes, it ends after {places.get(name)}")
    return wrong


class Informer(unittest.TestCase):
    def test_it_misses_and_doubles_nothing(self):
        server = Server()
        self.addCleanup(server.end)
        core = client.CoreV1Api(server.client())
        # Watches end each second, so that many begin where another ended.
        informer = Recorded(core.list_namespaced_config_map, namespace=NAMESPACE)
        build = informer._build_kwargs
        informer._build_kwargs = lambda: {**build(), **({} if informer._watch is None else {"timeout_seconds": 1})}
        informer.start()
        self.addCleanup(informer.stop)
        writers = [Writer(server, number) for number in range(3)]
        for writer in writers:
            writer.start()

        def written(more):
            wanted = sum(w.count for w in writers) + more
            until("they have written", lambda: sum(w.count for w in writers) >= wanted or any(w.failure for w in writers))
            for writer in writers:
                if writer.failure:
                    raise writer.failure

        for kill in range(KILLS):
            written(40)
            time.sleep(kill * 0.037 % 0.1)
            server.kill()
            server.begin()
        written(40)
        # More than the server remembers, while the informer is away.
        informer.stop()
        for number in range(60):
            body = client.V1ConfigMap(metadata=client.V1ObjectMeta(name="large"),
                                      data={"large": f"{number}" + "x" * 200_000})
            if number == 0:
                core.create_namespaced_config_map(NAMESPACE, body)
            else:
                core.replace_namespaced_config_map("large", NAMESPACE, body)
        core.delete_namespaced_config_map("large", NAMESPACE)
        informer.start()
        written(40)
        for writer in writers:
            writer.stopped.set()
            writer.join()
            self.assertIsNone(writer.failure)
        last = Writer(server, 9)
        last.put(END, "end")
        self.assertTrue(informer.ended.wait(60), "the informer sees the end")
        informer.stop()

        acknowledged = dict(last.acknowledged)
        for writer in writers:
            acknowledged.update(writer.acknowledged)
        # A list that shows the end is noted after its events are told.
        self.assertEqual(disagreements(acknowledged, informer.seen), [])
        held = {o.metadata.name: o.data["value"] for o in informer.cache.list() if (o.data or {}).get("value")}
        wanted = {name: ops[-1][1] for name, ops in acknowledged.items() if ops[-1][0] == "put"}
        self.assertEqual(held, wanted)
        self.assertGreaterEqual(informer.lists, 2, "nothing was compacted")
        events = sum(one[0] != "LIST" for one in informer.seen)
        self.assertGreater(events, 20)
        print(f"{sum(map(len, acknowledged.values()))} writes, {KILLS} kills: {informer.lists} lists, {events} events")

    def test_the_model_tells_what_is_wrong(self):
        acknowledged = {"a": [("put", "1", 10), ("delete",), ("put", "2", 14)]}
        right = [("LIST", 10, {"a": ("1", 10)}), ("DELETED", "a", "1", 12), ("ADDED", "a", "2", 14)]
        self.assertEqual(disagreements(acknowledged, right), [])
        for index in (1, 2):
            self.assertNotEqual(disagreements(acknowledged, right[:index] + right[index + 1:]), [])
            self.assertNotEqual(disagreements(acknowledged, right[:index] + [right[index]] + right[index:]), [])


if __name__ == "__main__":
    unittest.main()
