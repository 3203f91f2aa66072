"""Importing again. With an id of the source, a changed row updates its property and images instead of adding another property."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.core.management import CommandError

from housing.management.commands import import_listings as command
from housing.models import Agent, Property, PropertyImage
from tests.fixtures.commands import HEADER, everything, interrupted

COLUMNS = ["Ref", *HEADER, "Photos"]

BATH = ["R1", "Bath", 3, 100, "1/1/2026", "https://example.org/1.jpg|https://example.org/2.jpg"]


@pytest.fixture
def identified(csv_file, import_file, mapping) -> Callable[..., str]:
    """`identified([...], [...])`: import rows with an id of the source and images."""

    def act(*rows: list[object], header: list[str] = COLUMNS, image: str = 'url = { column = "Photos", split = "|" }', **options: object) -> str:
        ids = ("title.template", 'source_id.column = "Ref"\ntitle.template')
        return import_file(csv_file(*rows, header=header), by=mapping(ids, added=f"[image]\n{image}\n" if image else ""), **options)

    return act


def urls() -> list[tuple[int, str, str | None]]:
    """The images of all properties, in their order."""
    return [(image.position, image.url, image.caption) for image in PropertyImage.objects.order_by("property", "position")]


def test_a_changed_row_updates_its_property(transactional_db, identified, warm, read):
    """A portal exports all of its listings every night. Without the update each new price would be another property."""
    identified(BATH, ["R2", "Wells", 2, 90, "2/1/2026", ""])
    home, before = Property.objects.get(source_id="R1"), everything()
    warm("cached")

    assert identified([*BATH[:3], 95, *BATH[4:]], ["R2", "Wells", 2, 90, "2/1/2026", ""]) == (
        "2 rows read: 0 imported, 1 updated, 1 already there, 0 refused.\n"
    )

    changed = {row["id"]: row for row in everything()[3]}[home.pk]
    assert changed.pop("updated_at") > home.updated_at
    assert (changed.pop("price"), changed.pop("record_hash") == home.record_hash) == (95, False)
    assert changed.items() <= {row["id"]: row for row in before[3]}[home.pk].items()
    assert [everything()[number] for number in (0, 1, 2, 4)] == [before[number] for number in (0, 1, 2, 4)]
    assert [row["price"] for row in read("cached").json["results"]] == ["90.00", "95.00"]


def test_a_portal_whose_file_has_twenty_new_prices_keeps_its_other_pages_warm(transactional_db, csv_file, import_file, mapping, warm, read):
    """The changed listings are in twenty cities, and have twenty agents. Otherwise each night's import would empty the cache."""
    names = [(f'[{label}]\nname.default = "{name}"', f'[{label}]\nname.column = "City"') for label, name in (("office", "Town"), ("agent", "Ann"))]
    by = mapping(*names, ("title.template", 'source_id.column = "Ref"\ntitle.template'))
    rows = [[f"R{number}", f"Town {number}", 3, 100 + number, f"{1 + number % 28}/1/2026", ""] for number in range(40)]
    import_file(csv_file(*rows, header=COLUMNS), by=by)
    changed, other = (Property.objects.select_related("agent").get(source_id=name) for name in ("R0", "R39"))
    pages = [
        *({"city": f"Town {number}"} for number in range(20, 40)),
        *({"agent": home.pk} for home in Agent.objects.filter(name=other.agent.name)),
        {"office": other.agent.office_id, "ordering": "price"},
        {"status": "available"},
        {"min_bedrooms": 9},
    ]
    for page in pages:
        warm(**page)
    warm(f"cached/{other.pk}")
    warm(f"cached/{changed.pk}")
    warm(city="Town 0")

    assert "20 updated, 20 already there" in import_file(csv_file(*([*row[:3], 50, *row[4:]] for row in rows[:20]), *rows[20:], header=COLUMNS), by=by)

    assert {read("cached", **page).came_from for page in pages} == {read(f"cached/{other.pk}").came_from} == {"hit"}
    assert read(f"cached/{changed.pk}").json["price"] == "50.00"
    assert [row["price"] for row in read("cached", city="Town 0").rows] == ["50.00"]


def test_a_change_of_a_column_that_no_field_uses_keeps_the_time_of_the_last_update(db, identified):
    """Only the hash of the row has changed, and it is recognized in the next import."""
    identified(BATH)
    updated = Property.objects.get().updated_at

    assert "1 updated" in identified([*BATH, "new"], header=[*COLUMNS, "Note"])
    assert "1 already there" in identified([*BATH, "new"], header=[*COLUMNS, "Note"])
    assert Property.objects.get().updated_at == updated


def test_an_update_moves_a_property_to_another_location_and_keeps_what_the_file_does_not_have(db, identified):
    """A description that an editor wrote is not in the file. The date of creation never changes."""
    identified(BATH)
    Property.objects.update(description="By an editor")
    created = Property.objects.get().created_at

    identified(["R1", "Wells", 2, 100, "5/5/2026", BATH[5]])

    home = Property.objects.get()
    assert (home.location.city, home.title, home.bedrooms, home.description) == ("Wells", "2 rooms in Wells", 2, "By an editor")
    assert home.created_at == created


def test_images_of_a_changed_row_are_replaced_and_otherwise_kept(db, identified):
    """The ids of images that are the same stay the same."""
    identified(BATH)
    kept = list(PropertyImage.objects.values_list("pk", flat=True))

    identified([*BATH[:3], 95, *BATH[4:]])
    assert list(PropertyImage.objects.values_list("pk", flat=True)) == kept

    identified([*BATH[:5], "https://example.org/2.jpg"])
    assert urls() == [(0, "https://example.org/2.jpg", None)]

    identified([*BATH[:3], 90, BATH[4], ""], image="")
    assert urls() == [(0, "https://example.org/2.jpg", None)], "a mapping without images changes none"

    identified([*BATH[:3], 85, BATH[4], ""])
    assert urls() == []


def test_a_row_whose_id_an_earlier_row_has_is_refused(db, identified):
    """Nobody knows which of the two is current."""
    said = identified(BATH, [*BATH[:3], 95, *BATH[4:]])

    assert said == (
        "2 rows read: 1 imported, 0 already there, 1 refused:\n"
        "  1 × property.source_id, column 'Ref': expected an id that no earlier row has\n"
        "    1 × 'R1' (line 3)\n"
    )
    assert Property.objects.get().price == 100


def test_rows_without_an_id_are_recognized_by_their_cells(db, identified):
    """A file may have an id for some rows only."""
    rows = [["", *BATH[1:]], ["", *BATH[1:]]]
    assert identified(*rows).startswith("2 rows read: 2 imported")
    assert identified(*rows).startswith("2 rows read: 0 imported, 2 already there")


def test_a_property_that_was_imported_without_an_id_gets_it(db, identified, csv_file, import_file):
    """A user may add the id to the mapping later. From then on a changed row updates the property."""
    import_file(csv_file(BATH, header=COLUMNS))
    assert "0 imported, 1 updated" in identified(BATH)
    assert "0 imported, 1 updated" in identified([*BATH[:3], 95, *BATH[4:]])

    assert Property.objects.get().price == 95


def test_a_known_row_is_left_alone_if_the_mapping_makes_another_id_of_it(db, csv_file, import_file, mapping, identified):
    """Importing a file twice adds nothing, even with another mapping."""
    identified(BATH)
    by = mapping(("title.template", 'source_id.template = "portal:{Ref}"\ntitle.template'))
    assert "0 imported, 1 already there" in import_file(csv_file(BATH, header=COLUMNS), by=by)


def test_an_interrupted_update_leaves_the_database_as_it_was(transactional_db, identified, monkeypatch):
    """The first batch is updated already when Ctrl-C is pressed in the second."""
    monkeypatch.setattr(command, "BATCH", 2)
    rows = [[f"R{number}", *BATH[1:]] for number in range(3)]
    identified(*rows)
    before = everything()

    with interrupted(at=1):
        identified(*[[*row[:3], 95, *row[4:]] for row in rows], ["new", *BATH[1:]])

    assert everything() == before


def test_a_dry_run_counts_the_updates_and_writes_none(db, identified, csv_file, import_file, mapping):
    """The counts are those of the import that follows."""
    identified(BATH)
    before = everything()
    by = mapping(("title.template", 'source_id.column = "Ref"\ntitle.template'))
    rows = [[*BATH[:3], 95, *BATH[4:]], ["R2", *BATH[1:]]]

    assert import_file(csv_file(*rows, header=COLUMNS), "--dry-run", by=by).endswith("2 rows read: 1 imported, 1 updated, 0 already there, 0 refused.\n")
    assert everything() == before


# Images


def test_images_are_in_the_order_of_the_cell(db, identified):
    """The first one is the cover."""
    identified(BATH)
    assert urls() == [(0, "https://example.org/1.jpg", None), (1, "https://example.org/2.jpg", None)]


def test_images_may_be_in_several_columns_each_with_a_caption(db, csv_file, import_file, mapping):
    """An empty cell is no image."""
    images = ('url.column = "Front"\ncaption.default = "Front"\n', 'url.column = "Plan"\n', 'url.column = "Garden"\ncaption.column = "City"\n')
    tables = "".join(f"[[image]]\n{image}" for image in images)
    row = ["Bath", 3, 100, "1/1/2026", "https://example.org/f.jpg", "", "https://example.org/g.jpg"]
    import_file(csv_file(row, header=[*HEADER, "Front", "Plan", "Garden"]), by=mapping(added=tables))

    assert urls() == [(0, "https://example.org/f.jpg", "Front"), (1, "https://example.org/g.jpg", "Bath")]


def test_an_image_without_a_url_is_an_unusable_cell(db, identified):
    """A path such as `img/1.jpg` would be a broken picture on every page."""
    said = identified([*BATH[:5], "https://example.org/1.jpg|img/2.jpg"])
    assert said.endswith("  1 × image.url, column 'Photos': expected a valid URL\n    1 × 'img/2.jpg' (line 2)\n")
    assert not any(everything())


# All faults at once


def test_all_faults_of_a_row_are_listed(db, csv_file, import_file, mapping):
    """Otherwise a user would repair one column, run again, and find the next. The row counts once."""
    by = mapping(('status.default = "sold"', 'status = { column = "City", values = { Wells = "sold" } }'))
    said = import_file(csv_file(["Bath", "x", "dear", "32/1/2026"], ["Bath", 3, "dear", "1/1/2026"]), by=by)

    assert said == (
        "2 rows read: 0 imported, 0 already there, 2 refused:\n"
        "  2 × property.status, column 'City': expected one of the mapping's values\n"
        "    2 × 'Bath' (lines 2, 3)\n"
        "  2 × property.price, column 'Price': expected a number such as 1250.50\n"
        "    2 × 'dear' (lines 2, 3)\n"
        "  1 × property.bedrooms, column 'Rooms': expected a number such as 1250.50\n"
        "    1 × 'x' (line 2)\n"
        "  1 × property.created_at, column 'Date': expected a date in the format %d/%m/%Y\n"
        "    1 × '32/1/2026' (line 2)\n"
    )


def test_all_unlisted_values_are_listed_with_their_counts_and_some_of_the_others(db, csv_file, import_file, mapping):
    """A mapping needs each value of a column. Of a column of prices, five examples show what is wrong."""
    by = mapping(('property_type.default = "house"', 'property_type = { column = "City", values = { h = "house" } }'))
    said = import_file(csv_file(*[[f"kind {number % 9}", 3, f"dear {number}", "1/1/2026"] for number in range(30)]), "--dry-run", by=by)

    lines = said.splitlines()
    assert lines[1] == "  30 × property.property_type, column 'City': expected one of the mapping's values"
    assert lines[2:11] == [f"    4 × 'kind {number}' (lines {', '.join(str(2 + number + 9 * time) for time in range(4))})" for number in range(3)] + [
        f"    3 × 'kind {number}' (lines {', '.join(str(2 + number + 9 * time) for time in range(3))})" for number in range(3, 9)
    ]
    assert lines[11] == "  30 × property.price, column 'Price': expected a number such as 1250.50"
    assert lines[17:] == ["    and 25 other values; --faults FILE writes every cell"]


def test_every_unusable_cell_is_written_to_a_file(db, csv_file, import_file, tmp_path):
    """The summary has some lines of each kind. The person who repairs the data needs all of them."""
    rows = [["Bath", "x", price, "1/1/2026"] for price in ("dear", "1,5")]
    import_file(csv_file(*rows, ["Bath", 3]), "--dry-run", faults=tmp_path / "faults.csv")

    assert (tmp_path / "faults.csv").read_text(encoding="utf-8").splitlines() == [
        "line,field,column,value,expected",
        "2,property.price,Price,dear,a number such as 1250.50",
        "2,property.bedrooms,Rooms,x,a number such as 1250.50",
        '3,property.price,Price,"1,5",a number such as 1250.50',
        "3,property.bedrooms,Rooms,x,a number such as 1250.50",
        '4,row,,2 cells,"4 cells, one for each column"',
    ]


def test_a_file_of_faults_that_cannot_be_written_is_one_clear_error(db, csv_file, import_file, tmp_path):
    """The error comes before the import, because nobody wants to repeat a long one."""
    with pytest.raises(CommandError, match=r"Nothing was imported\. .*/none/faults\.csv cannot be written: No such file or directory\."):
        import_file(csv_file(["Bath", 3, 100, "1/1/2026"]), faults=tmp_path / "none" / "faults.csv")
    assert not any(everything())


def test_only_the_missing_cells_of_a_template_are_listed(db, csv_file, import_file):
    """The others are fine."""
    said = import_file(csv_file(["Bath", "", 100, "1/1/2026"]))
    assert said.endswith(":\n  1 × property.title, column 'Rooms': expected a value\n    1 × nothing (line 2)\n")
