#!/usr/bin/env python3
"""Writes the schemas of the served kinds, one file for each group version. Run by hand when Kubernetes moves on:

    pip download --no-deps kubernetes-validate && unzip kubernetes_validate-*.whl
    ./generate.py kubernetes_validate/kubernetes-json-schema/v1.33.0-local/_definitions.json

The source is the JSON-schema form of Kubernetes' own OpenAPI document, as the PyPI package `kubernetes-validate` ships
it. Here it is trimmed to what the kinds need and turned back into the shape of /openapi/v3. The kinds of metallb.io are
written down below, in the words of MetalLB's CustomResourceDefinitions.
"""
import json
import pathlib
import sys

META = "io.k8s.apimachinery.pkg.apis.meta.v1."
# Beside the kinds and their lists, every group version describes what its operations take and answer.
OPERATIONS = [META + name for name in ("DeleteOptions", "Patch", "Status", "WatchEvent")]
GROUP_VERSIONS = {
    ("", "v1"): ("io.k8s.api.core.v1.", [
        "Namespace", "Node", "Pod", "Service", "Endpoints", "ConfigMap", "Secret", "Event"]),
    ("discovery.k8s.io", "v1"): ("io.k8s.api.discovery.v1.", ["EndpointSlice"]),
    ("coordination.k8s.io", "v1"): ("io.k8s.api.coordination.v1.", ["Lease"]),
    ("networking.k8s.io", "v1"): ("io.k8s.api.networking.v1.", ["NetworkPolicy"]),
    ("metallb.io", "v1beta1"): ("io.metallb.v1beta1.", ["IPAddressPool", "L2Advertisement"]),
}
INT_OR_STRING = "io.k8s.apimachinery.pkg.util.intstr.IntOrString"
QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"


def ref(name, description=None):
    node = {"$ref": f"#/$defs/{name}"}
    return node | {"description": description} if description else node


def array(items, description, **more):
    return {"type": "array", "items": items, "description": description, **more}


def metallb(service):
    """The definitions of metallb.io/v1beta1; `apiVersion` and the like are worded as in any other kind."""
    head = {name: service["properties"][name] for name in ("apiVersion", "kind", "metadata")}
    string = {"type": "string"}
    selectors = lambda description: array(ref(META + "LabelSelector"), description)
    allocation = {
        "type": "object",
        "description": "AllocateTo makes ip pool allocation to specific namespace and/or service. The controller will "
        "use the pool with lowest value of priority in case of multiple matches. A pool with no priority set will be "
        "used only if the pools with priority can't be used. If multiple matching IPAddressPools are available it will "
        "check for the availability of IPs sorting the matching IPAddressPools by priority, starting from the highest "
        "to the lowest. If multiple IPAddressPools have the same priority, choice will be random.",
        "properties": {
            "namespaceSelectors": selectors(
                "NamespaceSelectors list of label selectors to select namespace(s) for ip pool, an alternative to "
                "using namespace list."),
            "namespaces": array(string, "Namespaces list of namespace(s) on which ip pool can be attached."),
            "priority": {"type": "integer", "format": "int64", "description":
                         "Priority priority given for ip pool while ip allocation on a service."},
            "serviceSelectors": selectors(
                "ServiceSelectors list of label selector to select service(s) for which ip pool can be used for ip "
                "allocation."),
        },
    }
    pool_spec = {
        "type": "object",
        "description": "IPAddressPoolSpec defines the desired state of IPAddressPool.",
        "required": ["addresses"],
        "properties": {
            "addresses": array(
                string,
                "A list of IP address ranges over which MetalLB has authority. You can list multiple ranges in a "
                "single pool, they will all share the same settings. Each range can be either a CIDR prefix, or an "
                "explicit start-end range of IPs."),
            "autoAssign": {"type": "boolean", "default": True, "description":
                           "AutoAssign flag used to prevent MetallB from automatic allocation for a pool."},
            "avoidBuggyIPs": {"type": "boolean", "default": False, "description":
                              "AvoidBuggyIPs prevents addresses ending with .0 and .255 to be used by a pool."},
            "serviceAllocation": ref("io.metallb.v1beta1.ServiceAllocation", allocation["description"]),
        },
    }
    count = lambda what: {"type": "integer", "format": "int64", "description": what}
    pool_status = {
        "type": "object",
        "description": "IPAddressPoolStatus defines the observed state of IPAddressPool.",
        "properties": {
            "assignedIPv4": count("AssignedIPv4 is the number of assigned IPv4 addresses."),
            "assignedIPv6": count("AssignedIPv6 is the number of assigned IPv6 addresses."),
            "availableIPv4": count("AvailableIPv4 is the number of available IPv4 addresses."),
            "availableIPv6": count("AvailableIPv6 is the number of available IPv6 addresses."),
        },
    }
    advertisement_spec = {
        "type": "object",
        "description": "L2AdvertisementSpec defines the desired state of L2Advertisement.",
        "properties": {
            "interfaces": array(
                string,
                "A list of interfaces to announce from. The LB IP will be announced only from these interfaces. If "
                "the field is not set, we advertise from all the interfaces on the host."),
            "ipAddressPoolSelectors": selectors(
                "A selector for the IPAddressPools which would get advertised via this advertisement. If no "
                "IPAddressPool is selected by this or by the list, the advertisement is applied to all the "
                "IPAddressPools."),
            "ipAddressPools": array(
                string, "The list of IPAddressPools to advertise via this advertisement, selected by name."),
            "nodeSelectors": selectors(
                "NodeSelectors allows to limit the nodes to announce as next hops for the LoadBalancer IP. When "
                "empty, all the nodes having are announced as next hops."),
        },
    }

    def kind(name, description, required=()):
        return {
            "type": "object", "description": description, "required": list(required),
            "properties": head | {
                "spec": ref(f"io.metallb.v1beta1.{name}Spec", f"{name}Spec defines the desired state of {name}."),
                "status": ref(f"io.metallb.v1beta1.{name}Status", f"{name}Status defines the observed state of {name}."),
            },
            "x-kubernetes-group-version-kind": [{"group": "metallb.io", "kind": name, "version": "v1beta1"}],
        }

    def list_of(name):
        return {
            "type": "object", "description": f"{name}List is a list of {name}", "required": ["items"],
            "properties": {
                "apiVersion": head["apiVersion"], "kind": head["kind"],
                "items": array(ref(f"io.metallb.v1beta1.{name}"), f"List of {name.lower()}s."),
                "metadata": ref(META + "ListMeta", "Standard list metadata."),
            },
            "x-kubernetes-group-version-kind": [{"group": "metallb.io", "kind": f"{name}List", "version": "v1beta1"}],
        }

    return {f"io.metallb.v1beta1.{name}": node for name, node in {
        "IPAddressPool": kind(
            "IPAddressPool",
            "IPAddressPool represents a pool of IP addresses that can be allocated to LoadBalancer services.",
            ["spec"]),
        "IPAddressPoolList": list_of("IPAddressPool"),
        "IPAddressPoolSpec": pool_spec,
        "IPAddressPoolStatus": pool_status,
        "ServiceAllocation": allocation,
        "L2Advertisement": kind(
            "L2Advertisement",
            "L2Advertisement allows to advertise the LoadBalancer IPs provided by the selected pools via L2."),
        "L2AdvertisementList": list_of("L2Advertisement"),
        "L2AdvertisementSpec": advertisement_spec,
        "L2AdvertisementStatus": {
            "type": "object",
            "description": "L2AdvertisementStatus defines the observed state of L2Advertisement.",
        },
    }.items()}


def references(node, found):
    if isinstance(node, dict):
        if "$ref" in node:
            found.add(node["$ref"].rsplit("/", 1)[-1])
        for child in node.values():
            references(child, found)
    elif isinstance(node, list):
        for child in node:
            references(child, found)


def closure(definitions, roots):
    seen, queue = set(), list(roots)
    while queue:
        name = queue.pop()
        if name not in seen:
            seen.add(name)
            found = set()
            references(definitions[name], found)
            queue += found
    return sorted(seen)


def convert(name, node, served):
    """One definition in the shape of /openapi/v3: no null types, references below components, only served kinds."""
    if name == INT_OR_STRING:
        return {"description": node.get("description", "A number or a name."), "format": "int-or-string",
                "oneOf": [{"type": "integer"}, {"type": "string"}]}
    if name == QUANTITY:
        return {"description": "Quantity is a fixed-point representation of a number, as in 500m, 2, 1Gi.",
                "oneOf": [{"type": "string"}, {"type": "number"}]}
    node = convert_node(node)
    if name.startswith(META):
        kinds = node.get("x-kubernetes-group-version-kind", [])
        kinds = [gvk for gvk in kinds if (gvk["group"], gvk["version"]) in served]
        if kinds:
            node["x-kubernetes-group-version-kind"] = kinds
        else:
            node.pop("x-kubernetes-group-version-kind", None)
    return node


def convert_node(node):
    result = {}
    for key, value in node.items():
        if key == "type" and isinstance(value, list):
            result["type"] = next(item for item in value if item != "null")
        elif key == "properties":
            result["properties"] = {name: convert_node(child) for name, child in value.items()}
        elif key in ("items", "additionalProperties") and isinstance(value, dict):
            result[key] = convert_node(value)
        elif key == "required" and not value:
            pass
        # The source adds the allowed values of apiVersion and kind; the real document has none.
        elif key not in ("$ref", "enum"):
            result[key] = value
    if "$ref" in node:
        target = {"$ref": "#/components/schemas/" + node["$ref"].rsplit("/", 1)[-1]}
        # A reference has no siblings in OpenAPI 3.0, hence the wrapping; as kube-apiserver writes it.
        return result | {"allOf": [target], "default": {}} if result else target
    return result


def main():
    definitions = json.loads(pathlib.Path(sys.argv[1]).read_text())["$defs"]
    definitions |= metallb(definitions["io.k8s.api.core.v1.Service"])
    served = set(GROUP_VERSIONS)
    for (group, version), (prefix, kinds) in GROUP_VERSIONS.items():
        roots = OPERATIONS + [prefix + kind for kind in kinds] + [prefix + kind + "List" for kind in kinds]
        lines = [
            json.dumps(name) + ":" + json.dumps(
                convert(name, definitions[name], served), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            for name in closure(definitions, roots)
        ]
        path = pathlib.Path(__file__).with_name(f"{group or 'core'}.{version}.json")
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        print(f"{path.name}: {len(lines)} definitions, {path.stat().st_size} bytes")


main()
