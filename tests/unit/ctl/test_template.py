"""`--format`: what is filled in, and what is a mistake."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from supervisor.api import operator_views, views
from supervisor.ctl import fields
from supervisor.ctl.errors import UsageError
from supervisor.ctl.template import Fields, Template, parse_template


def test_a_template_looks_into_the_json_and_leaves_out_what_is_absent() -> None:
    value = {"id": "x", "phases": {"boot": 3}, "tags": {"a.b": "c", "a-b": "d"}, "flag": False}
    template = Template(r"{id}\t{phases.boot} {phases}|{absent}{id.x}|{tags.a.b}{tags.a-b} {flag}")
    assert template.fill(value) == 'x\t3 {"boot": 3}||cd false'
    assert Template("{}").fill({"a": 1}) == '{"a": 1}'


def test_braces_that_name_no_field_are_text() -> None:
    assert Template('{"id": "{id}"}').fill({"id": "x"}) == '{"id": "x"}'


@pytest.mark.parametrize(
    "text", ["{id}", "{policy}", "{policy.cpus}", "{tags.any.thing}", "{phases.boot}", "no field"]
)
def test_what_a_build_may_have_is_accepted(text: str) -> None:
    assert parse_template(text, fields.BUILD) is not None


@pytest.mark.parametrize("text", ["{nope}", "{ID}", "{id.x}", "{policy.nope}", "{statuses}"])
def test_a_field_that_cannot_be_is_a_mistake(text: str) -> None:
    with pytest.raises(UsageError, match="there is no field") as raised:
        parse_template(text, fields.BUILD)
    assert "image_digest" in raised.value.hint


def described(model: type[BaseModel], prefix: str = "") -> Fields:
    """The fields of a model that the API answers with."""
    found: set[str] = set()
    for name, field in model.model_fields.items():
        text = str(field.annotation)
        inner = next(
            (
                each
                for each in (field.annotation, *getattr(field.annotation, "__args__", ()))
                if isinstance(each, type) and issubclass(each, BaseModel)
            ),
            None,
        )
        if inner is not None and "list" not in text:
            found |= described(inner, f"{prefix}{name}.")
        else:
            found.add(f"{prefix}{name}" + (".*" if text.startswith("dict") else ""))
    return frozenset(found)


@pytest.mark.parametrize(
    ("known", "model"),
    [
        (fields.BUILD, views.BuildView),
        (fields.STEP, views.StepView),
        (fields.IMAGE, operator_views.ImageView),
        (fields.IMAGE_DETAIL, operator_views.ImageDetailView),
        (fields.MACHINE, operator_views.MachineView),
        (fields.USAGE, operator_views.UsageView),
        (fields.PRUNED, operator_views.PruneView),
        (fields.SETTING, operator_views.SettingView),
        (fields.SYSTEM, operator_views.SystemView),
    ],
)
def test_the_known_fields_are_those_that_the_api_answers(
    known: Fields, model: type[BaseModel]
) -> None:
    assert known == {name if name != "config" else "config.*" for name in described(model)}


def test_the_known_fields_of_top_are_those_of_the_answers_that_it_asks_for() -> None:
    queue = described(operator_views.QueueView, "queue.")
    system = described(operator_views.SystemView, "system.")
    assert queue | system | {"machines"} == fields.TOP
