"""`manage.py seed`: generated listings, the same every time."""

from __future__ import annotations

import datetime
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from decimal import Decimal
from itertools import islice
from random import Random
from typing import Any, NamedTuple

from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError, connection, reset_queries, transaction
from django.db.models import F, Model
from django.utils.text import slugify
from tqdm import tqdm

from housing.models import Agent, Location, Office, Property, PropertyImage

BATCH = 1_000

NEWEST = datetime.datetime(2026, 6, 30, 18, 0, tzinfo=datetime.UTC)
"""The creation time of the newest property. The others were created in the year before."""

MINUTES = 365 * 24 * 60
"""The minutes of that year."""


MODELS = (PropertyImage, Property, Location, Agent, Office)
"""The seeded models, referring models first."""


class City(NamedTuple):
    """A city: the prefix of its zip codes, its centre in degrees, and the price of a square metre in dollars."""

    name: str
    state: str
    codes: str
    latitude: float
    longitude: float
    price: int


CITIES = [
    City("Albuquerque", "NM", "871", 35.08, -106.65, 2_300),
    City("Asheville", "NC", "288", 35.60, -82.55, 3_600),
    City("Austin", "TX", "787", 30.27, -97.74, 4_200),
    City("Baltimore", "MD", "212", 39.29, -76.61, 2_200),
    City("Boise", "ID", "837", 43.62, -116.20, 3_500),
    City("Boston", "MA", "021", 42.36, -71.06, 7_900),
    City("Burlington", "VT", "054", 44.48, -73.21, 3_700),
    City("Charleston", "SC", "294", 32.78, -79.93, 4_100),
    City("Chicago", "IL", "606", 41.88, -87.63, 3_100),
    City("Denver", "CO", "802", 39.74, -104.99, 4_600),
    City("Madison", "WI", "537", 43.07, -89.40, 2_900),
    City("Minneapolis", "MN", "554", 44.98, -93.27, 2_600),
    City("New Orleans", "LA", "701", 29.95, -90.07, 2_400),
    City("Philadelphia", "PA", "191", 39.95, -75.17, 2_500),
    City("Portland", "OR", "972", 45.52, -122.68, 3_900),
    City("Providence", "RI", "029", 41.82, -71.41, 3_000),
    City("Sacramento", "CA", "958", 38.58, -121.49, 3_800),
    City("San Diego", "CA", "921", 32.72, -117.16, 7_200),
    City("Seattle", "WA", "981", 47.61, -122.33, 6_100),
    City("Springfield", "IL", "627", 39.78, -89.65, 1_300),
]
OFFICES = ["Harbor & Oak", "Keystone", "Larkspur", "Northgate", "Old Mill", "Redwood", "Stonebridge", "Three Rivers", "Whitfield", "Yellow Door"]
TRADES = ["Realty", "Homes", "Properties", "Residential", "Real Estate"]
FIRST_NAMES = ["Amara", "Benjamin", "Chloé", "Dmitri", "Elena", "Farid", "Grace", "Hiro", "Inés", "Jamal", "Katya", "Liam", "Mei", "Noah", "Priya", "Zoë"]
LAST_NAMES = ["Alvarez", "Brooks", "Chen", "Dubois", "Edwards", "Fischer", "Garcia", "Haddad", "Ivanova", "Johnson", "Kowalski", "Nguyen", "Okafor", "Patel"]
MANNERS = ["Bright", "Charming", "Corner", "Light-filled", "Move-in ready", "Quiet", "Renovated", "Spacious", "Sunny", "Well-kept"]
STREETS = [
    "Birch Lane",
    "Canal Street",
    "Chestnut Avenue",
    "Elm Street",
    "Foundry Row",
    "Hillside Drive",
    "Lakeview Road",
    "Maple Court",
    "Orchard Way",
    "Park Place",
]
BEGINNINGS = [
    "On a tree-lined street, ten minutes' walk from shops and school.",
    "The kitchen opens to a dining room that seats ten.",
    "One owner since it was built.",
    "New roof, new windows, and the original floors.",
    "Close to the park, and to the express bus downtown.",
]
ENDS = [
    "Open house on Saturday.",
    "Parking for two cars.",
    "Heated by a heat pump.",
    "Offers are reviewed on Monday.",
    "Shown by appointment.",
    "Pets are welcome.",
]
VIEWS = ["the front", "the kitchen", "the living room", "the garden", "the street"]

TYPES = {Property.Type.HOUSE: 50, Property.Type.APARTMENT: 30, Property.Type.TOWNHOUSE: 15, Property.Type.LAND: 5}
STATUSES = {Property.Status.AVAILABLE: 70, Property.Status.PENDING: 12, Property.Status.SOLD: 15, Property.Status.WITHDRAWN: 3}
"""The share of each status, in percent."""


class Command(BaseCommand):
    """Seeds the database; see `help`."""

    help = (
        "Fill the database with generated listings, the same every time. Refuses if there already are properties. --replace deletes them first, "
        "with all offices, agents, locations and images, including imported ones. Everything happens in one transaction."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the number of properties and --replace."""
        parser.add_argument("--properties", default="1000", metavar="N", help="number of properties (default: 1,000); the other rows scale with it")
        parser.add_argument("--replace", action="store_true", help="delete all existing listings, then seed")

    def handle(self, *, properties: object, replace: bool, verbosity: int, **_: Any) -> None:
        """Seed, and print the counts. Raises CommandError for an invalid number, and if there already are properties."""
        number = _whole_number(properties)
        try:
            with transaction.atomic():
                if replace:
                    _delete_everything()
                elif there := Property.objects.count():
                    raise CommandError(f"There are {there:,} properties already, so nothing was changed. Run seed --replace to delete them and seed again.")
                made = _seed(number, quiet=not verbosity)
        except DatabaseError as error:
            raise CommandError(f"Nothing was changed. Database error: {error}") from error
        if verbosity:
            self.stdout.write(f"Created {', '.join(f'{count:,} {what}' for what, count in made.items())}.")


def _whole_number(text: object) -> int:
    try:
        number = int(str(text))
    except ValueError:
        number = 0
    if number < 1:
        raise CommandError(f"--properties is {text!r}. It must be a whole number, at least 1.")
    return number


def _delete_everything() -> None:
    for model in MODELS:
        model._default_manager.all()._raw_delete(connection.alias)  # delete() would read each row first for its signals


def _seed(number: int, *, quiet: bool) -> dict[str, int]:
    """Create properties with two images each, an office for every 200 of them, an agent for every 40 and a location for every 25, rounded up.

    1,000 properties have 5 offices, 25 agents and 40 locations. Returns the number of rows of each model.
    """
    _prepare()
    random = Random(2026)
    offices = _insert_all(Office, (_office(random) for _ in range(_ceil(number, 200))))
    agents = _insert_all(Agent, (_agent(random, *offices[index % len(offices)]) for index in range(_ceil(number, 40))))
    cities = [random.choice(CITIES) for _ in range(_ceil(number, 25))]
    locations = _insert_all(Location, (_location(random, city) for city in cities))
    places = [(city, pk) for city, (pk, _) in zip(cities, locations, strict=True)]
    with tqdm(total=number, desc="Seeding", unit=" properties", disable=quiet or None) as bar:
        for first in range(0, number, BATCH):
            count = min(BATCH, number - first)
            _write([_property(random, *random.choice(places), random.choice(agents)[0]) for _ in range(count)], random)
            bar.update(count)
            reset_queries()  # in debug, Django keeps every statement in memory
    _finish()
    return {"properties": number, "images": 2 * number, "locations": len(locations), "agents": len(agents), "offices": len(offices)}


def _prepare() -> None:
    """Block autovacuum, and check each foreign key at once.

    Autovacuum sees no uncommitted row, so the planner would treat the tables as empty. At COMMIT there would be millions of keys to check, and it
    would outlast its lease.
    """
    if connection.vendor == "postgresql":
        tables = ", ".join(connection.ops.quote_name(model._meta.db_table) for model in MODELS)
        with connection.cursor() as cursor:
            cursor.execute(f"LOCK TABLE {tables} IN SHARE UPDATE EXCLUSIVE MODE")
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")


def _finish() -> None:
    """Update the planner's statistics."""
    with connection.cursor() as cursor:
        for model in MODELS if connection.vendor == "postgresql" else ():
            cursor.execute(f"ANALYZE {connection.ops.quote_name(model._meta.db_table)}")


def _ceil(number: int, each: int) -> int:
    return -(-number // each)


def _write(properties: list[Property], random: Random) -> None:
    _insert(Property, properties)
    images = (
        PropertyImage(property_id=home.pk, url=f"https://images.example.com/{random.getrandbits(48):012x}.jpg", caption=caption, position=position)
        for home in properties
        for position, caption in enumerate([f"From {random.choice(VIEWS)}", None])
    )
    _insert(PropertyImage, list(images))


def _insert_all(model: type[Model], rows: Iterator[Any]) -> list[tuple[int, str]]:
    """Insert rows in batches, and return the id and the text of each."""
    made: list[tuple[int, str]] = []
    while batch := list(islice(rows, BATCH)):
        _insert(model, batch)
        made += [(row.pk, str(row)) for row in batch]
    return made


def _insert(model: type[Model], rows: Sequence[Any]) -> None:
    """Insert these rows and give them their ids: with COPY where there is one, which takes a fifth of the time."""
    if connection.vendor == "postgresql":
        _copy(model, rows)
        return
    model._default_manager.bulk_create(rows)
    if model is Property:
        Property.objects.filter(pk__gte=rows[0].pk).update(updated_at=F("created_at"))  # the clock wrote it


def _copy(model: type[Model], rows: Sequence[Any]) -> None:
    table, fields = model._meta.db_table, model._meta.concrete_fields
    with connection.cursor() as cursor:
        cursor.execute("SELECT nextval(pg_get_serial_sequence(%s, 'id')) FROM generate_series(1, %s)", [table, len(rows)])
        for row, (key,) in zip(rows, cursor.fetchall(), strict=True):
            row.pk = key
        columns = ", ".join(f'"{field.column}"' for field in fields)
        with cursor.copy(f"COPY {connection.ops.quote_name(table)} ({columns}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row([getattr(row, field.attname) for field in fields])


def _office(random: Random) -> Office:
    city = random.choice(CITIES).name if _nearly_always(random) else None
    return Office(name=f"{random.choice(OFFICES)} {random.choice(TRADES)}", city=city)


def _agent(random: Random, office_id: int, office: str) -> Agent:
    name = f"{random.choice(FIRST_NAMES)} {random.choice(LAST_NAMES)}"
    email = f"{slugify(name)}@{slugify(office)}.example.com" if _nearly_always(random) else None
    return Agent(name=name, email=email, office_id=office_id)


def _nearly_always(random: Random) -> bool:
    """Return True nine times out of ten, because real listings have gaps, too."""
    return random.randrange(10) > 0


def _location(random: Random, city: City) -> Location:
    """Make a location in a city."""
    north, east = (Decimal(random.randrange(-60_000, 60_000)).scaleb(-6) for _ in range(2))
    located = _nearly_always(random)
    return Location(
        city=city.name,
        state=city.state,
        zip_code=f"{city.codes}{random.randrange(1, 60):02}",
        latitude=Decimal(str(city.latitude)) + north if located else None,
        longitude=Decimal(str(city.longitude)) + east if located else None,
    )


def _property(random: Random, city: City, location_id: int, agent_id: int) -> Property:
    kind = random.choices(list(TYPES), list(TYPES.values()))[0]
    street = random.choice(STREETS)
    bedrooms = bathrooms = None
    if kind == Property.Type.LAND:
        area = random.randrange(400, 4_000)
        price = area * city.price * random.uniform(0.05, 0.12)
        title = f"{area:,} m² of building land on {street}, {city.name}"
    else:
        bedrooms = random.choices([1, 2, 3, 4, 5, 6], [10, 25, 33, 20, 9, 3])[0]
        bathrooms = Decimal(random.randrange(4, 4 + 4 * bedrooms, 2)) / 4
        area = 25 + 30 * bedrooms + random.randrange(30)
        price = area * city.price * random.uniform(0.75, 1.4)
        title = f"{random.choice(MANNERS)} {bedrooms}-bedroom {kind.label.lower()} on {street}, {city.name}"
    listed = NEWEST - datetime.timedelta(minutes=random.randrange(MINUTES))
    return Property(
        title=title,
        description=f"{random.choice(BEGINNINGS)} {random.choice(ENDS)}" if kind != Property.Type.LAND and _nearly_always(random) else None,
        property_type=kind,
        status=random.choices(list(STATUSES), list(STATUSES.values()))[0],
        price=1_000 * round(price / 1_000),
        bedrooms=bedrooms,
        bathrooms=bathrooms,
        area=area if _nearly_always(random) else None,
        location_id=location_id,
        agent_id=agent_id,
        created_at=listed,
        updated_at=listed,
    )
