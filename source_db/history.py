"""Generates the history of an invented shop: the same seed, scale and last day give the same rows. No I/O.

Days get weights for growth, weekdays and seasons; customers and products are skewed; money is in cents until it is
written. Rows are tuples in the order of `seed.COLUMNS`. Begin at `Shop`.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
import math
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from faker import Faker

DAYS = 730
CUSTOMERS, PRODUCTS, ORDERS, SESSIONS = 2_000, 500, 20_000, 26_000  # at scale 1
CUSTOMERS_BEFORE_OPENING = 0.1  # share of customers that signed up on the first day
CUSTOMER_SKEW = 2.2  # the oldest customers order the most
PRODUCT_SKEW = 0.9  # exponent of Zipf's law
DEAD_STOCK = 0.08  # share of products that nobody buys
TAX_PERCENT = 8
FREE_SHIPPING_CENTS, SHIPPING_CENTS = 7_500, 595
WEEKDAY_WEIGHTS = (0.9, 0.85, 0.9, 1.0, 1.15, 1.35, 1.25)  # Monday first
CHANNELS = ("web", "mobile", "store", "marketplace")
CATEGORIES = {  # price range in cents, margin
    "electronics": (2_000, 90_000, 0.22),
    "clothing": (900, 15_000, 0.55),
    "home": (700, 40_000, 0.45),
    "sports": (1_000, 30_000, 0.40),
    "books": (500, 6_000, 0.35),
    "beauty": (400, 9_000, 0.60),
    "toys": (600, 12_000, 0.50),
    "garden": (800, 25_000, 0.42),
}
COUNTRIES = {"US": 45, "DE": 14, "GB": 12, "FR": 10, "IT": 7, "ES": 5, "NL": 4, "JP": 3}
TIERS = {"bronze": 62, "silver": 24, "gold": 11, "platinum": 3}
FUNNEL = (("page_view", 1.0), ("product_view", 0.72), ("add_to_cart", 0.42), ("checkout", 0.58), ("purchase", 0.68))
WAREHOUSES = ("EAS", "WES")

Row = tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class OrderRows:
    """One order with its lines and payments."""

    order: Row
    items: list[Row]
    payments: list[Row]


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """A campaign, and the share of the orders on its days that are credited to it."""

    campaign_id: int
    starts: dt.datetime
    ends: dt.datetime
    pull: float


@dataclass
class Shop:
    """The history of one shop. Iterate each kind of row once, in the order of the methods."""

    scale: float
    seed: int
    until: dt.datetime
    _random: random.Random = field(init=False)
    _campaigns: list[Campaign] = field(init=False, default_factory=list)
    _prices: list[int] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        if self.until.tzinfo is None:
            raise ValueError("expected `until` with a time zone, found a naive datetime")
        self._random = random.Random(self.seed)  # noqa: S311 repeatable, not secret
        self.start = self.until - dt.timedelta(days=DAYS)
        self.customers = max(10, round(CUSTOMERS * self.scale))
        self.products = max(10, round(PRODUCTS * self.scale))

    def customer_rows(self) -> Iterator[Row]:
        fake = Faker()
        fake.seed_instance(self.seed)
        first_names = [fake.first_name() for _ in range(400)]
        last_names = [fake.last_name() for _ in range(800)]
        cities = [fake.city() for _ in range(300)]
        chance = self._random
        for number in range(1, self.customers + 1):
            created = self._signed_up(number)
            first, last = chance.choice(first_names), chance.choice(last_names)
            attributes = {"language": chance.choice(("en", "de", "fr", "it")), "source": chance.choice(CHANNELS)}
            yield (
                number,
                f"{first}.{last}.{number}@example.com".lower().replace(" ", ""),
                first,
                last,
                f"+1-555-{chance.randrange(10**7):07d}" if chance.random() < 0.8 else None,
                chance.choices(list(COUNTRIES), list(COUNTRIES.values()))[0],
                chance.choice(cities),
                chance.choices(list(TIERS), list(TIERS.values()))[0],
                chance.random() < 0.4,
                json.dumps(attributes),
                created,
                self._later(created, 90 * 24),
            )

    def product_rows(self) -> Iterator[Row]:
        fake = Faker()
        fake.seed_instance(self.seed + 1)
        words = [fake.unique.word() for _ in range(300)]
        chance = self._random
        categories = list(CATEGORIES)
        for number in range(1, self.products + 1):
            category = chance.choice(categories)
            low, high, margin = CATEGORIES[category]
            price = round(math.exp(chance.uniform(math.log(low), math.log(high))))
            self._prices.append(price)
            cost = round(price * (1 - margin * chance.uniform(0.7, 1.2)))
            attributes = {"colour": chance.choice(("red", "blue", "green", "black")), "grams": chance.randrange(5000)}
            name = f"{chance.choice(words)} {chance.choice(words)} {number}".title()
            sku = f"{category[:3].upper()}-{number:06d}"
            yield (
                number,
                sku,
                name,
                category,
                money(price),
                money(cost),
                chance.random() > 0.04,
                json.dumps(attributes),
                self.start,
                self._later(self.start, DAYS * 24),
            )

    def campaign_rows(self) -> Iterator[Row]:
        chance = self._random
        for number in range(1, 25):
            channel = ("email", "search", "social", "affiliate")[number % 4]
            first = self.start + dt.timedelta(days=chance.randrange(DAYS - 40))
            last = first + dt.timedelta(days=chance.randrange(10, 35))
            pull = chance.choice((0.002, 0.01, 0.03, 0.08, 0.15))
            budget = round(chance.uniform(800, 9_000) * max(self.scale, 0.1) * 100)
            self._campaigns.append(Campaign(campaign_id=number, starts=first, ends=last, pull=pull))
            name = f"{channel} {first:%Y-%m} #{number}"
            spend = money(round(budget * chance.uniform(0.6, 1.0)))
            created = max(first - dt.timedelta(days=14), self.start)
            yield (
                number,
                name,
                channel,
                money(budget),
                spend,
                first.date(),
                last.date(),
                created,
                min(last, self.until),
            )

    def order_rows(self) -> Iterator[OrderRows]:
        """Yield the orders by time, so that their ids grow with it."""
        popularity = self._popularity()
        item_ids, payment_ids = itertools.count(1), itertools.count(1)
        moments = self._moments(round(ORDERS * self.scale))
        for order_id, placed in enumerate(moments, start=1):
            yield self._order(order_id, placed, popularity, item_ids, payment_ids)

    def inventory_rows(self) -> Iterator[Row]:
        chance = self._random
        for product_id in range(1, self.products + 1):
            for warehouse in WAREHOUSES:
                point = chance.randrange(5, 60)
                on_hand = chance.choice((0, point // 2, point + 20, point * 3, point * 12))
                reserved = min(on_hand, chance.randrange(6))
                changed = self._later(self.start, DAYS * 24)
                yield (product_id, warehouse, on_hand, reserved, point, self.start, changed)

    def event_rows(self) -> Iterator[Row]:
        """Yield the steps of visits; fewer visitors take each step than the one before."""
        chance = self._random
        popularity = self._popularity()
        event_ids = itertools.count(1)
        for moment in self._moments(round(SESSIONS * self.scale)):
            session = str(uuid.UUID(int=chance.getrandbits(128), version=4))
            customer = self._customer_at(moment) if chance.random() < 0.6 else None
            product = self._product(popularity)
            campaign = self._campaign_at(moment)
            channel = chance.choices(CHANNELS, (50, 38, 2, 10))[0]
            properties = json.dumps({"device": chance.choice(("desktop", "phone", "tablet"))})
            happened = moment
            for step, share in FUNNEL:
                if chance.random() > share or happened >= self.until:
                    break
                seen = None if step == "page_view" else product
                yield (next(event_ids), session, customer, step, seen, campaign, channel, happened, properties)
                happened += dt.timedelta(seconds=chance.randrange(5, 240))

    def _order(
        self,
        order_id: int,
        placed: dt.datetime,
        popularity: list[float],
        item_ids: Iterator[int],
        payment_ids: Iterator[int],
    ) -> OrderRows:
        chance = self._random
        lines = [self._line(popularity) for _ in range(chance.choices((1, 2, 3, 4, 6, 9), (24, 24, 22, 16, 10, 4))[0])]
        subtotal = sum(quantity * price for _, quantity, price, _ in lines)
        discount = sum(line[3] for line in lines)
        tax = (subtotal - discount) * TAX_PERCENT // 100
        shipping = 0 if subtotal >= FREE_SHIPPING_CENTS else SHIPPING_CENTS
        total = subtotal - discount + tax + shipping
        is_cart = chance.random() < 0.03
        status, shipped, delivered = ("cart", None, None) if is_cart else self._fate(placed)
        changed = max(moment for moment in (placed, shipped, delivered) if moment)
        order = (
            order_id,
            self._customer_at(placed),
            self._campaign_at(placed),
            status,
            chance.choices(CHANNELS, (46, 34, 12, 8))[0],
            None if is_cart else placed,
            shipped,
            delivered,
            *map(money, (subtotal, discount, tax, shipping, total)),
            placed,
            changed,
        )
        items = [
            (next(item_ids), order_id, product, quantity, money(price), money(less), placed, placed)
            for product, quantity, price, less in lines
        ]
        payments = [
            (next(payment_ids), order_id, *payment) for payment in self._payments(status, placed, changed, total)
        ]
        return OrderRows(order=order, items=items, payments=payments)

    def _line(self, popularity: list[float]) -> tuple[int, int, int, int]:
        """Return product, quantity, unit price and discount, money in cents."""
        chance = self._random
        product = self._product(popularity)
        quantity = chance.choices((1, 2, 3, 5), (70, 18, 8, 4))[0]
        price = round(self._prices[product - 1] * chance.choice((0.9, 0.95, 1, 1, 1, 1.05)))
        percent = chance.choices((0, 5, 10, 25), (70, 12, 12, 6))[0]
        return product, quantity, price, quantity * price * percent // 100

    def _fate(self, placed: dt.datetime) -> tuple[str, dt.datetime | None, dt.datetime | None]:
        """Return what an order has reached by `until`: its status, when it was shipped, when it was delivered."""
        chance = self._random
        if chance.random() < 0.05:
            return "cancelled", None, None
        shipped = placed + dt.timedelta(hours=chance.uniform(4, 72))
        delivered = shipped + dt.timedelta(hours=chance.uniform(20, 150))
        if shipped >= self.until:
            return ("paid" if chance.random() < 0.8 else "placed"), None, None
        if delivered >= self.until:
            return "shipped", shipped, None
        return ("returned" if chance.random() < 0.06 else "delivered"), shipped, delivered

    def _payments(self, status: str, placed: dt.datetime, changed: dt.datetime, total: int) -> list[Row]:
        chance = self._random
        method = chance.choices(("card", "paypal", "bank_transfer", "gift_card"), (62, 24, 10, 4))[0]
        paid = min(placed + dt.timedelta(minutes=chance.randrange(1, 120)), self.until)
        if status == "cart" or total == 0:
            return []
        if status == "cancelled":
            return [(method, "failed", money(total), None, placed, paid)]
        if status == "placed":
            return [(method, "authorized", money(total), None, placed, placed)]
        rows: list[Row] = []
        if chance.random() < 0.04:
            rows.append((method, "failed", money(total), None, placed, placed))
        rows.append((method, "captured", money(total), paid, placed, paid))
        if status == "returned":
            rows.append((method, "refunded", money(-total), changed, changed, changed))
        return rows

    def _moments(self, count: int) -> Iterator[dt.datetime]:
        """Yield `count` instants in order, more of them on busy days and in the evening."""
        days = [self.start + dt.timedelta(days=day) for day in range(DAYS)]
        weights = [_day_weight(day, place) for place, day in enumerate(days)]
        whole, done, reached = sum(weights), 0, 0.0
        for day, weight in zip(days, weights, strict=True):
            reached += weight
            todo = round(count * reached / whole) - done
            done += todo
            seconds = sorted(int(self._random.betavariate(3.2, 2.2) * 86_399) for _ in range(todo))
            yield from (day + dt.timedelta(seconds=second) for second in seconds)

    def _signed_up(self, number: int) -> dt.datetime:
        """Return when a customer signed up: in the order of the numbers, and more of them each day."""
        share = max(0.0, number / self.customers - CUSTOMERS_BEFORE_OPENING) / (1 - CUSTOMERS_BEFORE_OPENING)
        return self.start + dt.timedelta(days=DAYS * share**0.8 * 0.999)

    def _customer_at(self, moment: dt.datetime) -> int:
        """Pick one of the customers who had signed up by then; early ones are more likely."""
        elapsed = max(0.0, (moment - self.start) / dt.timedelta(days=DAYS) / 0.999)
        share = CUSTOMERS_BEFORE_OPENING + (1 - CUSTOMERS_BEFORE_OPENING) * min(elapsed ** (1 / 0.8), 1.0)
        known = max(1, math.floor(share * self.customers) - 1)
        return 1 + int(known * self._random.random() ** CUSTOMER_SKEW)

    def _campaign_at(self, moment: dt.datetime) -> int | None:
        for campaign in self._campaigns:
            if campaign.starts <= moment <= campaign.ends and self._random.random() < campaign.pull:
                return campaign.campaign_id
        return None

    def _popularity(self) -> list[float]:
        """Return the cumulative weights of the products that sell; the others are dead stock."""
        selling = max(1, round(self.products * (1 - DEAD_STOCK)))
        return list(itertools.accumulate(1 / rank**PRODUCT_SKEW for rank in range(1, selling + 1)))

    def _product(self, popularity: list[float]) -> int:
        return self._random.choices(range(1, len(popularity) + 1), cum_weights=popularity)[0]

    def _later(self, moment: dt.datetime, most_hours: float) -> dt.datetime:
        return min(moment + dt.timedelta(hours=self._random.random() * most_hours), self.until)


def money(cents: int) -> str:
    """Write cents as an exact decimal."""
    sign = "-" if cents < 0 else ""
    return f"{sign}{abs(cents) // 100}.{abs(cents) % 100:02d}"


def _day_weight(day: dt.datetime, place: int) -> float:
    growth = 1 + 1.2 * place / DAYS
    season = 1 + 0.25 * math.cos(2 * math.pi * (day.timetuple().tm_yday - 350) / 365)
    sale = 1.9 if (day.month, day.day) in {(11, 27), (11, 28), (12, 1), (7, 15)} else 1.0
    return growth * season * sale * WEEKDAY_WEIGHTS[day.weekday()]
