"""Users, roles and privileges of the strict stand-in, as Milvus checks them (proxy/privilege_interceptor.go)."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any

import grpc
from pymilvus.grpc_gen import common_pb2, milvus_pb2

if TYPE_CHECKING:
    from google.protobuf.message import Message

Grant = tuple[str, str]
"""A privilege such as "Search", and the collection for which it holds, or "*"."""

# rootcoord/root_coord.go, initPublicRolePrivilege: everybody has the role "public"
PUBLIC: frozenset[Grant] = frozenset({("DescribeCollection", "*"), ("ListAliases", "*"), ("IndexDetail", "*")})
# pkg/util/constant.go, RelatedPrivileges: granted together with
RELATED = {"Load": ("GetLoadState", "GetLoadingProgress"), "Flush": ("GetFlushState",)}


class Refusal(Exception):
    """What a server refuses: its code and reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class Rights:
    """Users of a server; "root" may do everything.

    Attributes:
        passwords: of each user.
        roles: of each user.
        grants: of each role.
    """

    def __init__(self) -> None:
        self.passwords: dict[str, str] = {}
        self.roles: dict[str, set[str]] = {}
        self.grants: dict[str, set[Grant]] = {}

    def authorize(self, request: Any, context: grpc.ServicerContext, metadata: dict[str, str]) -> None:
        """Refuse a wrong password (authentication_interceptor.go), and what the user has no privilege for.

        Which privilege a request needs, and for which of its fields, is an option of its message in the protocol.
        """
        if not self.passwords:
            return
        try:
            name, _, password = base64.b64decode(metadata.get("authorization", "")).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            name = password = ""
        if self.passwords.get(name, "") != password or not password:
            context.abort(
                grpc.StatusCode.UNAUTHENTICATED,
                "auth check failure, please check api key/username and password are correct",
            )
        extension = common_pb2.privilege_ext_obj
        options = request.DESCRIPTOR.GetOptions()
        if name == "root" or not options.HasExtension(extension):
            return
        rule = options.Extensions[extension]
        needed = common_pb2.ObjectPrivilege.Name(rule.object_privilege)
        own = set(PUBLIC).union(*(self.grants.get(role, set()) for role in self.roles.get(name, ())))
        for thing in _things(request, rule):
            if not own & {(needed.removeprefix("Privilege"), each) for each in ("*", thing)}:
                context.abort(
                    grpc.StatusCode.PERMISSION_DENIED, f"{needed}: permission deny to {name} in the `default` database"
                )

    # The requests of those who manage users.

    def create_credential(self, request: Any) -> Message:
        self.passwords[request.username] = base64.b64decode(request.password).decode()
        return common_pb2.Status()

    def create_role(self, request: Any) -> Message:
        self.grants.setdefault(request.entity.name, set())
        return common_pb2.Status()

    def operate_user_role(self, request: Any) -> Message:
        own = self.roles.setdefault(request.username, set())
        if request.type == milvus_pb2.OperateUserRoleType.RemoveUserFromRole:
            own.discard(request.role_name)
        else:
            own.add(request.role_name)
        return common_pb2.Status()

    def operate_privilege(self, request: Any) -> Message:
        """Grants of 2.4: the type of the object has to be that of the privilege (rootcoord, isValidObject)."""
        entity = request.entity
        privilege = entity.grantor.privilege.name
        if entity.object.name != object_type(privilege):
            raise Refusal(65_535, f"the privilege entity in the grant entity is invalid: {privilege}")
        return self._operate(entity.role.name, (privilege, entity.object_name), request.type)

    def operate_privilege_v2(self, request: Any) -> Message:
        """Grants since 2.5."""
        return self._operate(request.role.name, (request.grantor.privilege.name, request.collection_name), request.type)

    def _operate(self, role: str, grant: Grant, kind: int) -> Message:
        if role not in self.grants:
            raise Refusal(65_535, f"not found the role: {role}")
        both = {grant, *((each, grant[1]) for each in RELATED.get(grant[0], ()))}
        if kind == milvus_pb2.OperatePrivilegeType.Revoke:
            self.grants[role] -= both
        else:
            self.grants[role] |= both
        return common_pb2.Status()


def object_type(privilege: str) -> str:
    """ "Collection" or "Global": the type of object that a privilege is for, as the messages of the protocol say."""
    extension = common_pb2.privilege_ext_obj
    value = common_pb2.ObjectPrivilege.Value(f"Privilege{privilege}")
    for message in milvus_pb2.DESCRIPTOR.message_types_by_name.values():
        options = message.GetOptions()
        if options.HasExtension(extension) and options.Extensions[extension].object_privilege == value:
            return str(common_pb2.ObjectType.Name(options.Extensions[extension].object_type))
    raise Refusal(65_535, f"not found the privilege: {privilege}")


def _things(request: Any, rule: Any) -> list[str]:
    """The names that a request is about, as it spells them: an alias is another name than its collection's."""
    number = rule.object_name_index or rule.object_name_indexs
    if number <= 0:
        return ["*"]
    value = getattr(request, request.DESCRIPTOR.fields_by_number[number].name)
    return [value] if isinstance(value, str) else list(value)
