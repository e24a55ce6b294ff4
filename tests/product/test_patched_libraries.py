"""What we replace in other libraries, or lean on though it is private there, is still what it was when we read it.

Each entry names a piece of a library's source, who of us relies on it, and for what. With a new version of the library
whose piece is another, a test fails here, before a node or a server does in the field: read the piece again, see that
what is relied on still holds, and add its hash.
"""

import ast
import hashlib
import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest
from source_tree import ROOT, SOURCES


@dataclass(frozen=True)
class Piece:
    """Part of a library's source.

    Attributes:
        module: Where it stands.
        name: Of the function, class, method (`Class.method`) or constant.
        relied_on_by: File of ours.
        for_what: What must still hold.
        hashes: First 16 hexadecimal digits of the SHA-256 of its source, as read.
    """

    module: str
    name: str
    relied_on_by: str
    for_what: str
    hashes: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


PIECES = (
    Piece(
        "flwr.superlink.cli.flower_superlink",
        "_run_superlink_http_api",
        "server/superlink/main.py",
        "it calls `uvicorn.run` by the name of the module, once, with application, host, port and certificates",
        ("d3694371fa3bd82a",),
    ),
    Piece(
        "flwr.supercore.sql_mixin",
        "_set_sqlite_pragmas",
        "server/superlink/flower_state.py",
        "each connection to the database runs the pragmas in SQLITE_PRAGMAS, read when it is opened",
        ("be86301a48b6be69",),
    ),
    Piece(
        "flwr.supercore.constant",
        "SQLITE_PRAGMAS",
        "server/superlink/flower_state.py",
        "they are pairs of a name and a value, and busy_timeout is one of them",
        ("c9aa94367c881f79",),
    ),
    Piece(
        "flwr.supercore.servicer.runtime.runtime_handlers",
        "acquire_task",
        "server/superlink/app_launcher.py",
        "it gives the oldest pending task of a type, and a token",
        ("4ea4fa75a4fec9b0",),
    ),
    Piece(
        "flwr.supercore.corestate.sql_corestate",
        "SqlCoreState.finish_task",
        "server/superlink/app_launcher.py",
        "it says False of a task that has reported its end",
        ("a8b72f4e0bfc0dda",),
    ),
    Piece(
        "flwr.superlink.runtime.run_serverapp",
        "run_serverapp",
        "server/superlink/app_process.py",
        "it runs the app of a token, and reports how that ended",
        ("f11f1b60804cfef4",),
    ),
    Piece(
        "flwr.supercore.logger",
        "mirror_output_to_queue",
        "server/superlink/app_process.py",
        "what is written to standard output goes into the queue too",
        ("d5ce72fe0d1a475a",),
    ),
    Piece(
        "flwr.supercore.logger",
        "restore_output",
        "server/superlink/app_process.py",
        "it undoes that",
        ("84f0075a7ae7dec8",),
    ),
    Piece(
        "flwr.supernode.start_client_internal",
        "start_client_internal",
        "client/supernode/replies.py",
        "the loop pulls and pushes by the names of both functions, and pushes after whatever is no None",
        ("1689ad636bd5386d",),
    ),
    Piece(
        "flwr.supernode.start_client_internal",
        "_push_messages",
        "client/supernode/replies.py",
        "it waits for as long as `state.get_messages_legacy` gives nothing, sends what that gave, and asks once",
        ("94f2e249d834091c",),
    ),
    Piece(
        "flwr.supernode.start_client_internal",
        "_pull_and_store_message",
        "client/supernode/server_bounds.py",
        "it gets receive, pull_object, get_run and get_fab by name, and unpacks by get_fused_config_from_fab alone",
        ("234b741865b0adf4",),
    ),
    Piece(
        "flwr.supernode.fleet_http_connection",
        "http_request_response",
        "client/supernode/server_bounds.py",
        "it makes its client by the name FleetHttpClient; and tries again at 502, 503 and 504, and ends at 401",
        ("40094f65fe04374d",),
    ),
    Piece(
        "flwr.supernode.fleet_http_connection",
        "http_request_response",
        "client/supernode/lasting_link.py",
        "each request goes through `FleetHttpClient` and is repeated; so is a heartbeat at an httpx.TransportError",
        ("40094f65fe04374d",),
    ),
    Piece(
        "flwr.supercore.protobuf.client",
        "ProtobufClient",
        "client/supernode/lasting_link.py",
        "the methods of a FleetHttpClient call `_unary_unary` with path and all else by keyword",
        ("228da9233cb3fcc1",),
    ),
    Piece(
        "flwr.supercore.retry.http_retry",
        "make_simple_http_retry_invoker",
        "client/supernode/lasting_link.py",
        "it repeats an httpx.ConnectError for ever unless its text has one of three words; ends the process at 401",
        ("6b0038cbd67ccc68",),
    ),
    Piece(
        "flwr.supercore.protobuf.client",
        "ProtobufClient",
        "client/supernode/server_bounds.py",
        "all requests go through the httpx client in `_client`",
        ("228da9233cb3fcc1",),
    ),
    Piece(
        "flwr.supercore.protobuf.client",
        "ProtobufClient",
        "client/supernode/executor.py",
        "all requests go through the httpx client in `_client`",
        ("228da9233cb3fcc1",),
    ),
    Piece(
        "flwr.supernode.cli.flower_supernode",
        "_start_supernode_http_api",
        "client/supernode/main.py",
        "the interface for apps is served by `uvicorn.Server` and `uvicorn.Config`, by the name of the module",
        ("4f02d421b05ff3e0",),
    ),
    Piece(
        "flwr.supernode.runtime.run_clientapp",
        "pull_task_input",
        "client/supernode/executor.py",
        "it gives message and context of the token's task",
        ("338db039fd403261",),
    ),
    Piece(
        "flwr.supernode.runtime.run_clientapp",
        "push_message",
        "client/supernode/executor.py",
        "it hands the answer to the SuperNode",
        ("d917bf9905e82b3e",),
    ),
    Piece(
        "flwr.supernode.runtime.run_clientapp",
        "push_task_output",
        "client/supernode/executor.py",
        "it reports how the task ended",
        ("04757ae09d600f2e",),
    ),
    Piece(
        "flwr.supercore.heartbeat",
        "HeartbeatSender",
        "client/supernode/executor.py",
        "it beats in a thread, from `start` to `stop`",
        ("02eda22ea502a3f9",),
    ),
    Piece(
        "uvicorn.server",
        "Server.startup",
        "server/superlink/server.py",
        "with an empty list of sockets it opens no port",
        ("25129dfbb2593161",),
    ),
    Piece(
        "uvicorn.server",
        "Server.shutdown",
        "server/superlink/server.py",
        "it waits for the requests under way",
        ("0b07e47a35d78072",),
    ),
    Piece(
        "uvicorn.server",
        "Server.run",
        "client/supernode/main.py",
        "it serves on the sockets that it is given",
        ("b9eb4c53203bc8ea",),
    ),
    Piece(
        "uvicorn.protocols.http.h11_impl",
        "H11Protocol.data_received",
        "server/gateway/guarded_http.py",
        "`cycle` is another once a request has its task",
        ("98f8b4defbd3372d",),
    ),
    Piece(
        "uvicorn.protocols.http.h11_impl",
        "H11Protocol.connection_made",
        "server/gateway/guarded_http.py",
        "`transport` is set",
        ("90cf013eb407eb3f",),
    ),
    Piece(
        "torch.distributed",
        "is_available",
        "client/supernode/lean_imports.py",
        "nothing but this says that torch was built for several machines",
        ("489ff5f7c1caa58e",),
    ),
    Piece(
        "opacus.accountants.accountant",
        "IAccountant.__init__",
        "privacy/accounting/opacus_analysis.py",
        "an accountant holds its history, and nothing else",
        ("9af4cbc85dae8a11",),
    ),
    Piece(
        "opacus.accountants.rdp",
        "RDPAccountant",
        "privacy/accounting/opacus_analysis.py",
        "it uses of its base class the history alone",
        ("2fbc457cac3ff863",),
    ),
    Piece(
        "opacus.accountants.analysis.rdp",
        "compute_rdp",
        "privacy/accounting/opacus_analysis.py",
        "it takes rate, noise multiplier, steps and orders",
        ("ba240fef1045d100",),
    ),
)


@cache
def definitions(module):
    """Path and source of a module, and its definitions by name; nothing of it is run."""
    library, _, rest = module.partition(".")
    path = Path(importlib.util.find_spec(library).origin).parent.joinpath(*rest.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text, named = path.read_text(), {}

    def collect(body, prefix=""):
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                named[prefix + node.name] = node
            if isinstance(node, ast.ClassDef):
                collect(node.body, f"{node.name}.")
            for target in getattr(node, "targets", [getattr(node, "target", None)]):
                if isinstance(target, ast.Name):
                    named[prefix + target.id] = node

    collect(ast.parse(text).body)
    return path, text, named


def source_of(piece):
    path, text, named = definitions(piece.module)
    assert piece.name in named, f"{path} has no {piece.name} any more, on which {piece.relied_on_by} relies"
    return ast.get_source_segment(text, named[piece.name])


@pytest.mark.parametrize("piece", PIECES, ids=str)
def test_a_piece_is_the_one_that_was_read(piece):
    library = piece.module.partition(".")[0]
    digest = hashlib.sha256(source_of(piece).encode()).hexdigest()[:16]
    assert digest in piece.hashes, (
        f"{piece} of {library} {version(library)} is not the one that {piece.relied_on_by} was written for, which "
        f"needs that {piece.for_what}: read it again, mend what no longer holds, then add {digest!r}"
    )


def test_who_relies_on_a_piece_uses_its_library():
    idle = [piece for piece in PIECES if piece.module.partition(".")[0] not in (ROOT / piece.relied_on_by).read_text()]
    assert idle == []


def test_whatever_is_replaced_in_a_library_stands_above():
    """Modules whose names are set by us, wherever that is."""
    replaced = {
        (path.relative_to(ROOT).as_posix(), module)
        for path in SOURCES
        for module in re.findall(r'import_module\("((?:flwr|uvicorn|torch|opacus)[\w.]*)"\)', path.read_text())
        if re.search(r"vars\(\w+\)(\[|\.update)", path.read_text())
    }
    listed = {(piece.relied_on_by, piece.module) for piece in PIECES}
    only_imported = {("client/supernode/lean_imports.py", "flwr.app")}
    assert replaced - only_imported <= listed


def test_torch_and_transformers_have_what_a_lean_node_leaves_out():
    unused = {"disable", "allow_in_graph", "assume_constant_result", "graph_break"}
    assert unused <= definitions("torch._dynamo.decorators")[2].keys()
    assert "TransformGetItemToIndex" in definitions("torch._dynamo._trace_wrapped_higher_order_op")[2]
    assert (
        "from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex"
        in (definitions("transformers.masking_utils")[1])
    )


def test_opacus_derives_its_accountants_from_the_class_that_stands_in():
    """`privacy/accounting/opacus_analysis.py` loads the files below `analysis`, and `rdp.py` for one of them."""
    folder = Path(importlib.util.find_spec("opacus").origin).parent / "accountants"
    imported = set()
    for path in (*sorted((folder / "analysis").rglob("*.py")), folder / "rdp.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                imported.add("." * node.level + (node.module or ""))
            elif isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
    own = {name for name in imported if name.startswith((".", "opacus", "torch"))}
    known = {".accountant", ".analysis", "...rdp", "..rdp", ".compose", ".domain", ".prvs"}
    assert own <= known, f"they import more of Opacus now: {own - known}"
