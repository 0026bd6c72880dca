#!/usr/bin/env python3
"""Writes the schemas of the served kinds, one file for each group version. `regenerate` fetches what it reads and runs it:

    generate.py [--check] DEFINITIONS CRATE

DEFINITIONS is the JSON-schema form of Kubernetes' own OpenAPI document, as the PyPI package `kubernetes-validate` ships
it: kubernetes_validate/kubernetes-json-schema/VERSION-local/_definitions.json. CRATE is the `src` folder of the crate
`kcr_metallb_io`, which is made of MetalLB's CustomResourceDefinitions. Here both are trimmed to what the kinds need and
turned back into the shape of /openapi/v3. With --check nothing is written: it fails where a file differs.
"""
import hashlib
import json
import pathlib
import re
import sys

META = "io.k8s.apimachinery.pkg.apis.meta.v1."
# Beside the kinds and their lists, every group version describes what its operations take and answer.
OPERATIONS = [META + name for name in ("DeleteOptions", "Patch", "Status", "WatchEvent")]
GROUP_VERSIONS = {
    ("", "v1"): ("io.k8s.api.core.v1.", [
        "Namespace", "Node", "Pod", "Service", "Endpoints", "ConfigMap", "Secret", "Event"]),
    ("discovery.k8s.io", "v1"): ("io.k8s.api.discovery.v1.", ["EndpointSlice"]),
    ("coordination.k8s.io", "v1"): ("io.k8s.api.coordination.v1.", ["Lease"]),
    ("networking.k8s.io", "v1"): ("io.k8s.api.networking.v1.", [
        "NetworkPolicy", "Ingress", "IngressClass", "ServiceCIDR", "IPAddress"]),
    ("metallb.io", "v1beta1"): ("io.metallb.v1beta1.", ["IPAddressPool", "L2Advertisement", "ServiceL2Status"]),
    # Questions, which are answered and not kept: there are no lists of them.
    ("authentication.k8s.io", "v1"): ("io.k8s.api.authentication.v1.", ["SelfSubjectReview", "TokenReview"]),
    ("authorization.k8s.io", "v1"): ("io.k8s.api.authorization.v1.", [
        "LocalSubjectAccessReview", "SelfSubjectAccessReview", "SelfSubjectRulesReview", "SubjectAccessReview"]),
}
# What gets lost on the way to Rust types: the kinds' own descriptions, and defaults.
METALLB_KINDS = {
    "IPAddressPool": "IPAddressPool represents a pool of IP addresses that can be allocated to LoadBalancer services.",
    "L2Advertisement": "L2Advertisement allows to advertise the LoadBalancer IPs provided by the selected pools via L2.",
    "ServiceL2Status": "ServiceL2Status reveals the actual traffic status of loadbalancer services in layer2 mode.",
}
METALLB_DEFAULTS = {"IPAddressPool": {"autoAssign": True, "avoidBuggyIPs": False}}
INT_OR_STRING = "io.k8s.apimachinery.pkg.util.intstr.IntOrString"
QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"


def metallb(service, crate):
    """The definitions of metallb.io/v1beta1, out of the Rust types that the crate makes of MetalLB's
    CustomResourceDefinitions. `apiVersion` and the like are worded as in any other kind."""
    head = {name: service["properties"][name] for name in ("apiVersion", "kind", "metadata")}
    found = {}
    for name, description in METALLB_KINDS.items():
        types = structs((crate / "v1beta1" / (name.lower().replace("status", "statuse") + "s.rs")).read_text())
        spec, status = ([t for t in types if t.lower() == (name + part).lower()] for part in ("spec", "status"))
        properties = dict(head)
        # A kind's specification comes first in its file, whatever it is called.
        properties["spec"] = (inline(types, spec[0])
                              | {"description": f"{name}Spec defines the desired state of {name}."})
        properties["status"] = (inline(types, status[0]) if status else {"type": "object"})
        properties["status"].setdefault("description", f"{name}Status defines the observed state of {name}.")
        for field, value in METALLB_DEFAULTS.get(name, {}).items():
            properties["spec"]["properties"][field]["default"] = value
        required = ["spec"] if properties["spec"].get("required") else []
        found[f"io.metallb.v1beta1.{name}"] = {
            "type": "object", "description": description, "required": required, "properties": properties,
            "x-kubernetes-group-version-kind": [{"group": "metallb.io", "kind": name, "version": "v1beta1"}],
        }
        # In the words of kube-apiserver, which makes lists of custom resources itself.
        found[f"io.metallb.v1beta1.{name}List"] = {
            "type": "object", "description": f"{name}List is a list of {name}", "required": ["items"],
            "properties": {
                "apiVersion": head["apiVersion"], "kind": head["kind"],
                "items": {"type": "array", "items": {"$ref": f"#/$defs/io.metallb.v1beta1.{name}"}, "description":
                          f"List of {name.lower().replace('status', 'statuse')}s. More info: https://git.k8s.io/community"
                          "/contributors/devel/sig-architecture/api-conventions.md"},
                "metadata": {"$ref": f"#/$defs/{META}ListMeta", "description": "Standard list metadata."},
            },
            "x-kubernetes-group-version-kind": [{"group": "metallb.io", "kind": f"{name}List", "version": "v1beta1"}],
        }
    return found


def structs(text):
    """Each type of a file that kopium wrote: name -> (description, [(JSON name, description, Rust type)])."""
    found = {}
    docs, fields, rename = [], None, None
    for line in map(str.strip, text.splitlines()):
        if line.startswith("///"):
            docs.append(line[3:].removeprefix(" "))
        elif match := re.match(r"pub (?:struct|enum) (\w+)", line):
            fields = []
            found[match.group(1)] = ("\n".join(docs), fields)
            docs = []
        elif match := re.search(r'rename = "([^"]+)"', line):
            rename = match.group(1)
        elif match := re.match(r"pub (?:r#)?(\w+): (.+),$", line):
            fields.append((rename or match.group(1), "\n".join(docs), match.group(2)))
            docs, rename = [], None
    return found


def inline(types, name):
    """A type as a schema, without references, as kube-apiserver publishes custom resources."""
    description, fields = types[name]
    properties = {}
    for field, text, rust in fields:
        properties[field] = rust_type(types, rust) | ({"description": text} if text else {})
    schema = {"type": "object", "description": description}
    if properties:
        schema["properties"] = properties
    required = sorted(field for field, _, rust in fields if not rust.startswith("Option<"))
    return schema | ({"required": required} if required else {})


def rust_type(types, rust):
    if match := re.fullmatch(r"Option<(.+)>", rust):
        return rust_type(types, match.group(1))
    if match := re.fullmatch(r"Vec<(.+)>", rust):
        return {"type": "array", "items": rust_type(types, match.group(1))}
    if match := re.fullmatch(r"BTreeMap<String, (.+)>", rust):
        return {"type": "object", "additionalProperties": rust_type(types, match.group(1))}
    scalars = {"String": {"type": "string"}, "bool": {"type": "boolean"},
               "i64": {"type": "integer", "format": "int64"}, "i32": {"type": "integer", "format": "int32"}}
    return dict(scalars[rust]) if rust in scalars else inline(types, rust)


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


def files(definitions):
    """The text of each file, by name."""
    served = set(GROUP_VERSIONS)
    texts = {}
    for (group, version), (prefix, kinds) in GROUP_VERSIONS.items():
        lists = [prefix + kind + "List" for kind in kinds]
        roots = OPERATIONS + [prefix + kind for kind in kinds] + [name for name in lists if name in definitions]
        lines = [
            json.dumps(name) + ":" + json.dumps(
                convert(name, definitions[name], served), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            for name in closure(definitions, roots)
        ]
        texts[f"{group or 'core'}.{version}.json"] = "{\n" + ",\n".join(lines) + "\n}\n"
    # By this a build that has neither package sees whether somebody has changed a file by hand.
    sums = [f"{hashlib.sha256(text.encode()).hexdigest()}  {name}\n" for name, text in sorted(texts.items())]
    return texts | {"SHA256SUMS": "".join(sums)}


def main():
    check = "--check" in sys.argv
    kubernetes, crate = (pathlib.Path(argument) for argument in sys.argv[1:] if argument != "--check")
    definitions = json.loads(kubernetes.read_text())["$defs"]
    definitions |= metallb(definitions["io.k8s.api.core.v1.Service"], crate)
    different = []
    for name, text in files(definitions).items():
        path = pathlib.Path(__file__).with_name(name)
        if not path.exists() or path.read_text() != text:
            different.append(name)
            if not check:
                path.write_text(text)
    if check and different:
        sys.exit(f"not what the packages say: {', '.join(different)}; run regenerate")
    print("unchanged" if not different else f"written: {', '.join(different)}")


main()
