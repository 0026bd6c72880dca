"""The Python client against the server: objects, lists, patches, watches, and what errors hold."""

import datetime
import json
import unittest

from kubernetes import client, dynamic, utils, watch
from kubernetes.client.exceptions import ApiException

from server import Server

SERVER = None


def setUpModule():
    global SERVER
    SERVER = Server()


def tearDownModule():
    SERVER.end()


def forget():
    """What was before a restart is not remembered: it is as after a compaction."""
    SERVER.kill()
    SERVER.begin()


def config_map(name, labels=None, **data):
    return client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name, labels=labels), data=data)


class Case(unittest.TestCase):
    number = 0

    def setUp(self):
        Case.number += 1
        self.namespace = f"py-{Case.number}"
        self.client = SERVER.client()
        self.core = client.CoreV1Api(self.client)
        self.core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=self.namespace)))

    def make(self, name, labels=None, **data):
        return self.core.create_namespaced_config_map(self.namespace, config_map(name, labels, **data))

    def names(self, **options):
        found = self.core.list_namespaced_config_map(self.namespace, **options).items
        return [o.metadata.name for o in found if o.metadata.name != "kube-root-ca.crt"]

    def refused(self, call, *args, **options):
        with self.assertRaises(ApiException) as caught:
            call(*args, **options)
        status = json.loads(caught.exception.body)
        self.assertEqual((status["kind"], status["apiVersion"], status["status"]), ("Status", "v1", "Failure"))
        self.assertEqual(status["code"], caught.exception.status)
        return status


class Objects(Case):
    def test_all_verbs(self):
        made = self.make("a", x="1")
        self.assertTrue(made.metadata.uid and made.metadata.resource_version)
        self.assertIsInstance(made.metadata.creation_timestamp, datetime.datetime)
        read = self.core.read_namespaced_config_map("a", self.namespace)
        self.assertEqual(read.data, {"x": "1"})
        read.data["y"] = "2"
        replaced = self.core.replace_namespaced_config_map("a", self.namespace, read)
        self.assertNotEqual(replaced.metadata.resource_version, made.metadata.resource_version)
        # The same once more changes nothing.
        again = self.core.replace_namespaced_config_map("a", self.namespace, replaced)
        self.assertEqual(again.metadata.resource_version, replaced.metadata.resource_version)
        gone = self.core.delete_namespaced_config_map("a", self.namespace)
        details = {"name": "a", "kind": "configmaps", "uid": made.metadata.uid}
        self.assertEqual((gone["kind"], gone["status"], gone["details"]), ("Status", "Success", details))
        self.assertEqual(self.names(), [])

    def test_delete_with_preconditions_and_collections(self):
        for name in "abc":
            self.make(name, {"x": "y" if name != "c" else "z"})
        wrong = client.V1DeleteOptions(preconditions=client.V1Preconditions(uid="other"))
        status = self.refused(self.core.delete_namespaced_config_map, "a", self.namespace, body=wrong)
        self.assertEqual((status["code"], status["reason"]), (409, "Conflict"))
        self.assertIn("Precondition failed: UID in precondition: other, UID in object meta: ", status["message"])
        self.core.delete_collection_namespaced_config_map(self.namespace, label_selector="x=y")
        self.assertEqual(self.names(), ["c"])

    def test_patches_of_each_type(self):
        self.make("a", x="1")
        patch = lambda body, **options: self.core.patch_namespaced_config_map("a", self.namespace, body, **options)
        # The client sends a list as a JSON patch, an object as a strategic merge patch.
        self.assertEqual(patch([{"op": "add", "path": "/data/y", "value": "2"}]).data, {"x": "1", "y": "2"})
        self.assertEqual(patch({"data": {"x": None}}).data, {"y": "2"})
        merged = patch({"data": {"y": None, "z": "3"}}, _content_type="application/merge-patch+json")
        self.assertEqual(merged.data, {"z": "3"})
        applied = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"w": "4"}}
        done = patch(applied, _content_type="application/apply-patch+yaml", field_manager="py", force=True)
        self.assertEqual(done.data, {"w": "4", "z": "3"})

    def test_services_get_what_they_need(self):
        spec = client.V1ServiceSpec(type="NodePort", selector={"app": "a"}, ports=[client.V1ServicePort(port=80)])
        service = client.V1Service(metadata=client.V1ObjectMeta(name="a"), spec=spec)
        made = self.core.create_namespaced_service(self.namespace, service)
        self.assertTrue(made.spec.cluster_ip.startswith("10."))
        self.assertTrue(30000 <= made.spec.ports[0].node_port <= 32767)
        status = {"status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}}}
        done = self.core.patch_namespaced_service_status("a", self.namespace, status)
        self.assertEqual(done.status.load_balancer.ingress[0].ip, "1.2.3.4")

    def test_the_dynamic_client_finds_its_way_by_discovery(self):
        found = dynamic.DynamicClient(self.client)
        slices = found.resources.get(api_version="discovery.k8s.io/v1", kind="EndpointSlice")
        body = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "s"},
                "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 80}]}
        slices.create(body=body, namespace=self.namespace)
        self.assertEqual(slices.get(name="s", namespace=self.namespace).endpoints[0].addresses, ["10.0.0.1"])
        pools = found.resources.get(api_version="metallb.io/v1beta1", kind="IPAddressPool")
        pools.create(namespace=self.namespace, body={"apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool",
                                                     "metadata": {"name": "p"}, "spec": {"addresses": ["1.2.3.0/24"]}})
        self.assertEqual([p.metadata.name for p in pools.get(namespace=self.namespace).items], ["p"])

    def test_manifests_of_several_documents(self):
        utils.create_from_dict(self.client, {"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}} for name in "ab"]},
            namespace=self.namespace)
        self.assertEqual(self.names(), ["a", "b"])


class Lists(Case):
    def setUp(self):
        super().setUp()
        for number in range(7):
            self.make(f"m{number}", {"odd": str(number % 2)})

    def test_pages_are_of_one_moment(self):
        seen, options = [], {}
        while True:
            page = self.core.list_namespaced_config_map(self.namespace, limit=2, **options)
            seen.append((page.metadata.resource_version, [o.metadata.name for o in page.items]))
            if not page.metadata._continue:
                break
            # What changes meanwhile is not in the rest.
            if len(seen) == 1:
                self.core.delete_namespaced_config_map("m5", self.namespace)
                self.make("m55")
            options = {"_continue": page.metadata._continue}
        names = [n for _, page in seen for n in page if n != "kube-root-ca.crt"]
        self.assertEqual(names, [f"m{n}" for n in range(7)])
        self.assertEqual(len({revision for revision, _ in seen}), 1)
        self.assertTrue(all(len(page) <= 2 for _, page in seen))

    def test_selectors(self):
        self.assertEqual(self.names(label_selector="odd=1"), ["m1", "m3", "m5"])
        self.assertEqual(self.names(label_selector="odd in (0),odd!=1"), ["m0", "m2", "m4", "m6"])
        self.assertEqual(self.names(field_selector="metadata.name=m3"), ["m3"])
        self.assertEqual(self.names(label_selector="odd=1", field_selector="metadata.name!=m3"), ["m1", "m5"])
        self.assertEqual(self.names(label_selector="odd=1", limit=2), ["m1", "m3"])

    def test_revisions(self):
        before = self.core.list_namespaced_config_map(self.namespace).metadata.resource_version
        self.core.delete_namespaced_config_map("m0", self.namespace)
        exact = self.names(resource_version=before, resource_version_match="Exact")
        self.assertIn("m0", exact)
        self.assertNotIn("m0", self.names(resource_version=before, resource_version_match="NotOlderThan"))
        self.assertNotIn("m0", self.names(resource_version="0"))
        forget()
        status = self.refused(self.core.list_namespaced_config_map, self.namespace, resource_version=before,
                              resource_version_match="Exact")
        self.assertEqual((status["code"], status["reason"]), (410, "Expired"))

    def test_pages_that_are_forgotten(self):
        page = self.core.list_namespaced_config_map(self.namespace, limit=2)
        self.make("more")
        forget()
        status = self.refused(self.core.list_namespaced_config_map, self.namespace, limit=2,
                              _continue=page.metadata._continue)
        self.assertEqual((status["code"], status["reason"]), (410, "Expired"))
        self.assertIn("The provided continue parameter is too old", status["message"])


class Watches(Case):
    def test_changes_as_they_come(self):
        revision = self.core.list_namespaced_config_map(self.namespace).metadata.resource_version
        self.make("a")
        self.core.patch_namespaced_config_map("a", self.namespace, {"data": {"x": "1"}})
        self.core.delete_namespaced_config_map("a", self.namespace)
        seen = []
        for event in watch.Watch().stream(self.core.list_namespaced_config_map, self.namespace,
                                          resource_version=revision, timeout_seconds=5):
            seen.append((event["type"], event["object"].metadata.name))
            if len(seen) == 3:
                break
        self.assertEqual(seen, [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")])

    def test_what_is_forgotten_is_gone(self):
        revision = self.core.list_namespaced_config_map(self.namespace).metadata.resource_version
        self.make("a")
        forget()
        with self.assertRaises(ApiException) as caught:
            for _ in watch.Watch().stream(self.core.list_namespaced_config_map, self.namespace,
                                          resource_version=revision, timeout_seconds=5):
                pass
        self.assertEqual(caught.exception.status, 410)

    def test_a_watch_ends_in_its_time(self):
        stream = watch.Watch().stream(self.core.list_namespaced_config_map, self.namespace, timeout_seconds=1,
                                      field_selector="metadata.name=nothing")
        self.assertEqual(list(stream), [])


class Refusals(Case):
    def test_not_found(self):
        status = self.refused(self.core.read_namespaced_service, "nope", self.namespace)
        self.assertEqual(status, {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                                  "message": 'services "nope" not found', "reason": "NotFound", "code": 404,
                                  "details": {"name": "nope", "kind": "services"}})
        found = self.refused(client.DiscoveryV1Api(self.client).read_namespaced_endpoint_slice, "nope", self.namespace)
        self.assertEqual(found["details"], {"name": "nope", "group": "discovery.k8s.io", "kind": "endpointslices"})

    def test_already_exists(self):
        self.make("a")
        status = self.refused(self.make, "a")
        self.assertEqual((status["code"], status["reason"], status["message"]),
                         (409, "AlreadyExists", 'configmaps "a" already exists'))

    def test_conflict(self):
        first = self.make("a")
        self.core.patch_namespaced_config_map("a", self.namespace, {"data": {"x": "1"}})
        status = self.refused(self.core.replace_namespaced_config_map, "a", self.namespace, first)
        self.assertEqual((status["code"], status["reason"]), (409, "Conflict"))
        self.assertEqual(status["details"], {"name": "a", "kind": "configmaps"})

    def test_invalid_names_each_cause(self):
        spec = client.V1ServiceSpec(type="ClusterIP", ports=[client.V1ServicePort(port=0, name="X"),
                                                             client.V1ServicePort(port=70000, name="y")])
        service = client.V1Service(metadata=client.V1ObjectMeta(name="a"), spec=spec)
        status = self.refused(self.core.create_namespaced_service, self.namespace, service)
        self.assertEqual((status["code"], status["reason"]), (422, "Invalid"))
        self.assertEqual((status["details"]["name"], status["details"]["kind"]), ("a", "Service"))
        causes = {(c["field"], c["reason"]) for c in status["details"]["causes"]}
        self.assertEqual(causes, {("spec.ports[0].name", "FieldValueInvalid"),
                                  ("spec.ports[0].port", "FieldValueInvalid"),
                                  ("spec.ports[0].targetPort", "FieldValueInvalid"),
                                  ("spec.ports[1].port", "FieldValueInvalid"),
                                  ("spec.ports[1].targetPort", "FieldValueInvalid")})

    def test_bad_requests(self):
        status = self.refused(self.core.list_namespaced_config_map, self.namespace, label_selector="a=b=c")
        self.assertEqual((status["code"], status["reason"]), (400, "BadRequest"))
        status = self.refused(self.core.list_namespaced_config_map, self.namespace, field_selector="data.x=1")
        self.assertEqual((status["code"], status["reason"]), (400, "BadRequest"))
        status = self.refused(self.core.create_namespaced_config_map, self.namespace, config_map("a"),
                              dry_run="Some")
        self.assertIn(status["code"], (400, 422))

    def test_unknown_fields(self):
        # The typed client lets no such field through.
        path = f"/api/v1/namespaces/{self.namespace}/configmaps?fieldValidation=Strict"
        body = {"metadata": {"name": "a"}, "nope": 1}
        with self.assertRaises(dynamic.exceptions.BadRequestError) as caught:
            dynamic.DynamicClient(self.client).request("post", path, body=body)
        self.assertEqual(json.loads(caught.exception.body)["message"],
                         'ConfigMap in version "v1" cannot be handled as a ConfigMap: strict decoding error: '
                         'unknown field "nope"')

    def test_who_is_not_known(self):
        anonymous = SERVER.client()
        anonymous.configuration.cert_file = anonymous.configuration.key_file = None
        anonymous.configuration.api_key = {"authorization": "Bearer a.b"}
        stranger = client.CoreV1Api(client.ApiClient(anonymous.configuration))
        status = self.refused(stranger.list_namespaced_service, self.namespace)
        self.assertEqual((status["code"], status["reason"], status["message"]), (401, "Unauthorized", "Unauthorized"))


if __name__ == "__main__":
    unittest.main()
