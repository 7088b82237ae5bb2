"""Declares the tables of the example shop; `metadata.create_all` creates them with types, indexes and comments.

The docstring of a class is the comment of its table in the database; the enum types are in `kinds`.
The names of constraints and indexes are those that PostgreSQL would choose itself.
"""

from __future__ import annotations

import datetime as dt
import enum
import uuid
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, ClassVar

from sqlalchemy import (
    CHAR,
    BigInteger,
    CheckConstraint,
    Connection,
    DateTime,
    Enum,
    ForeignKey,
    Identity,
    Integer,
    MetaData,
    Numeric,
    Table,
    Text,
    event,
    false,
    func,
    text,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from source_db.kinds import (
    CampaignChannel,
    CustomerTier,
    EventType,
    OrderStatus,
    PaymentMethod,
    PaymentStatus,
    SalesChannel,
)

ENUM_TYPES: Mapping[type[enum.StrEnum], str] = {
    CustomerTier: "customer_tier",
    SalesChannel: "sales_channel",
    CampaignChannel: "campaign_channel",
    OrderStatus: "order_status",
    PaymentMethod: "payment_method",
    PaymentStatus: "payment_status",
    EventType: "event_type",
}
CONSTRAINT_NAMES = {
    "pk": "%(table_name)s_pkey",
    "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
    "uq": "%(table_name)s_%(column_0_N_name)s_key",
    "ix": "%(table_name)s_%(column_0_N_name)s_idx",
    "ck": "%(table_name)s_%(constraint_name)s",
}
metadata = MetaData(naming_convention=CONSTRAINT_NAMES)

Price = Annotated[Decimal, mapped_column(Numeric(10, 2))]
Amount = Annotated[Decimal, mapped_column(Numeric(12, 2))]
Units = Annotated[int, mapped_column(Integer)]
ZERO = text("0")


def _enum_type(kind: type[enum.StrEnum], name: str) -> Enum:
    """Return the database type whose labels are the values of the class, in its order."""
    return Enum(kind, name=name, values_callable=lambda members: [member.value for member in members])


def _identity() -> Mapped[int]:
    """Return a key that the database numbers; rows of the seed bring their own numbers."""
    return mapped_column(Identity(), primary_key=True, comment="Key, numbered by the database.")


class Base(DeclarativeBase):
    """Base of all tables: their registry, and the database type of each Python type."""

    metadata = metadata
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        int: BigInteger,
        str: Text,
        dt.datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
        **{kind: _enum_type(kind, name) for kind, name in ENUM_TYPES.items()},
    }

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        assert isinstance(cls.__table__, Table)
        cls.__table__.comment = cls.__doc__


class Stamped:
    """Two columns at the end of a table. A trigger sets `updated_at`, by which replication finds changed rows."""

    created_at: Mapped[dt.datetime] = mapped_column(
        server_default=func.now(), comment="When the row was created.", sort_order=1
    )
    updated_at: Mapped[dt.datetime] = mapped_column(
        server_default=func.now(),
        index=True,
        comment="Start of the transaction that last changed the row.",
        sort_order=2,
    )


def _check_stamps(name: str) -> CheckConstraint:
    return CheckConstraint("updated_at >= created_at", name=name)


class Customer(Stamped, Base):
    """One row per customer."""

    __tablename__ = "customers"
    __table_args__ = (_check_stamps("check"),)

    customer_id: Mapped[int] = _identity()
    email: Mapped[str] = mapped_column(
        CheckConstraint("email like '%_@_%'", name="email_check"),
        unique=True,
        comment="Email address, unique; the login name.",
    )
    first_name: Mapped[str] = mapped_column(comment="Given name.")
    last_name: Mapped[str] = mapped_column(comment="Family name.")
    phone: Mapped[str | None] = mapped_column(comment="Phone number as typed, if given.")
    country: Mapped[str] = mapped_column(CHAR(2), comment="ISO 3166 code of the country.")
    city: Mapped[str] = mapped_column(comment="City of the main address.")
    tier: Mapped[CustomerTier] = mapped_column(server_default=CustomerTier.BRONZE, comment="Loyalty tier.")
    marketing_opt_in: Mapped[bool] = mapped_column(
        server_default=false(), comment="Whether the customer agreed to marketing mail."
    )
    attributes: Mapped[dict[str, Any]] = mapped_column(
        server_default="{}", comment="Other attributes: language, source of the sign-up."
    )


class Product(Stamped, Base):
    """One row per product."""

    __tablename__ = "products"
    __table_args__ = (_check_stamps("check"),)

    product_id: Mapped[int] = _identity()
    sku: Mapped[str] = mapped_column(unique=True, comment="Stock keeping unit, unique.")
    name: Mapped[str] = mapped_column(comment="Name shown in the shop.")
    category: Mapped[str] = mapped_column(comment="Category shown in the shop.")
    price: Mapped[Price] = mapped_column(
        CheckConstraint("price >= 0", name="price_check"), comment="Current list price, USD."
    )
    cost: Mapped[Price] = mapped_column(
        CheckConstraint("cost >= 0", name="cost_check"), comment="Current purchase cost, USD."
    )
    is_active: Mapped[bool] = mapped_column(server_default=true(), comment="Whether the product is for sale.")
    attributes: Mapped[dict[str, Any]] = mapped_column(
        server_default="{}", comment="Other attributes: colour, weight in grams."
    )


class Campaign(Stamped, Base):
    """One row per marketing campaign."""

    __tablename__ = "campaigns"
    __table_args__ = (CheckConstraint("ends_on >= starts_on", name="check"), _check_stamps("check1"))

    campaign_id: Mapped[int] = _identity()
    name: Mapped[str] = mapped_column(unique=True, comment="Name of the campaign, unique.")
    channel: Mapped[CampaignChannel] = mapped_column(comment="Where the campaign runs.")
    budget: Mapped[Amount] = mapped_column(
        CheckConstraint("budget >= 0", name="budget_check"), comment="Planned spend, USD."
    )
    spend: Mapped[Amount] = mapped_column(
        CheckConstraint("spend >= 0", name="spend_check"), server_default=ZERO, comment="Spend so far, USD."
    )
    starts_on: Mapped[dt.date] = mapped_column(comment="First day of the campaign.")
    ends_on: Mapped[dt.date] = mapped_column(comment="Last day of the campaign.")


class Order(Stamped, Base):
    """One row per order, carts included."""

    __tablename__ = "orders"
    __table_args__ = (
        CheckConstraint("total = subtotal - discount + tax + shipping", name="check"),
        CheckConstraint("(status = 'cart') = (ordered_at is null)", name="check1"),
        CheckConstraint("shipped_at >= ordered_at", name="check2"),
        CheckConstraint("delivered_at >= shipped_at", name="check3"),
        _check_stamps("check4"),
    )

    order_id: Mapped[int] = _identity()
    customer_id: Mapped[int] = mapped_column(
        ForeignKey("customers.customer_id"), index=True, comment="Customer who ordered."
    )
    campaign_id: Mapped[int | None] = mapped_column(
        ForeignKey("campaigns.campaign_id"), index=True, comment="Campaign that the order is credited to, if any."
    )
    status: Mapped[OrderStatus] = mapped_column(server_default=OrderStatus.CART, comment="State of the order.")
    channel: Mapped[SalesChannel] = mapped_column(comment="Where the order came from.")
    ordered_at: Mapped[dt.datetime | None] = mapped_column(comment="When the order was placed; null for a cart.")
    shipped_at: Mapped[dt.datetime | None] = mapped_column(comment="When the order left the warehouse.")
    delivered_at: Mapped[dt.datetime | None] = mapped_column(comment="When the order arrived.")
    subtotal: Mapped[Amount] = mapped_column(
        CheckConstraint("subtotal >= 0", name="subtotal_check"),
        server_default=ZERO,
        comment="Sum of quantity times unit price of its items, USD.",
    )
    discount: Mapped[Amount] = mapped_column(
        CheckConstraint("discount >= 0", name="discount_check"),
        server_default=ZERO,
        comment="Sum of the discounts of its items, USD.",
    )
    tax: Mapped[Amount] = mapped_column(
        CheckConstraint("tax >= 0", name="tax_check"), server_default=ZERO, comment="Tax, USD."
    )
    shipping: Mapped[Amount] = mapped_column(
        CheckConstraint("shipping >= 0", name="shipping_check"), server_default=ZERO, comment="Shipping fee, USD."
    )
    total: Mapped[Amount] = mapped_column(server_default=ZERO, comment="subtotal - discount + tax + shipping, USD.")


class OrderItem(Stamped, Base):
    """One row per line of an order."""

    __tablename__ = "order_items"
    __table_args__ = (
        CheckConstraint("discount between 0 and quantity * unit_price", name="check"),
        _check_stamps("check1"),
    )

    order_item_id: Mapped[int] = _identity()
    order_id: Mapped[int] = mapped_column(
        ForeignKey("orders.order_id", ondelete="CASCADE"), index=True, comment="Order that the line belongs to."
    )
    product_id: Mapped[int] = mapped_column(
        ForeignKey("products.product_id"), index=True, comment="Product that was ordered."
    )
    quantity: Mapped[Units] = mapped_column(
        CheckConstraint("quantity > 0", name="quantity_check"), comment="Number of units."
    )
    unit_price: Mapped[Price] = mapped_column(
        CheckConstraint("unit_price >= 0", name="unit_price_check"), comment="Price of a unit when ordered, USD."
    )
    discount: Mapped[Price] = mapped_column(server_default=ZERO, comment="Discount on the whole line, USD.")


class Payment(Stamped, Base):
    """One row per payment or refund."""

    __tablename__ = "payments"
    __table_args__ = (
        CheckConstraint("(amount < 0) = (status = 'refunded')", name="check"),
        _check_stamps("check1"),
    )

    payment_id: Mapped[int] = _identity()
    order_id: Mapped[int] = mapped_column(
        ForeignKey("orders.order_id", ondelete="CASCADE"), index=True, comment="Order that is paid or refunded."
    )
    method: Mapped[PaymentMethod] = mapped_column(comment="How the payment was made.")
    status: Mapped[PaymentStatus] = mapped_column(comment="State of the payment.")
    amount: Mapped[Amount] = mapped_column(comment="Amount, USD; negative for a refund.")
    paid_at: Mapped[dt.datetime | None] = mapped_column(
        comment="When the money moved; null while authorized or failed."
    )


class InventoryLevel(Stamped, Base):
    """One row per product and warehouse: the current stock."""

    __tablename__ = "inventory_levels"
    __table_args__ = (_check_stamps("check"),)

    product_id: Mapped[int] = mapped_column(
        ForeignKey("products.product_id"), primary_key=True, comment="Product in stock."
    )
    warehouse_code: Mapped[str] = mapped_column(
        CheckConstraint("warehouse_code ~ '^[A-Z]{3}$'", name="warehouse_code_check"),
        primary_key=True,
        comment="Three-letter code of the warehouse.",
    )
    on_hand: Mapped[Units] = mapped_column(
        CheckConstraint("on_hand >= 0", name="on_hand_check"), comment="Units in the warehouse."
    )
    reserved: Mapped[Units] = mapped_column(
        CheckConstraint("reserved >= 0", name="reserved_check"),
        server_default=ZERO,
        comment="Units in the warehouse that are reserved for orders.",
    )
    reorder_point: Mapped[Units] = mapped_column(
        CheckConstraint("reorder_point >= 0", name="reorder_point_check"), comment="Stock at which more is ordered."
    )


# No foreign keys: a visit outlives the customer and the product that it names.
class Event(Base):
    """One row per step of a visit to the shop; append-only."""

    __tablename__ = "events"

    event_id: Mapped[int] = mapped_column(
        Identity(), primary_key=True, comment="Key, numbered in order by the database."
    )
    session_id: Mapped[uuid.UUID] = mapped_column(comment="Visit that the step belongs to.")
    customer_id: Mapped[int | None] = mapped_column(comment="Customer, if signed in.")
    event_type: Mapped[EventType] = mapped_column(comment="Step of the visit.")
    product_id: Mapped[int | None] = mapped_column(comment="Product that was viewed or bought, if any.")
    campaign_id: Mapped[int | None] = mapped_column(comment="Campaign that led to the visit, if any.")
    channel: Mapped[SalesChannel] = mapped_column(comment="Where the visit came from.")
    occurred_at: Mapped[dt.datetime] = mapped_column(server_default=func.now(), comment="When the step happened.")
    properties: Mapped[dict[str, Any]] = mapped_column(server_default="{}", comment="Other properties: device.")


class SchemaMigration(Base):
    """One row per version of this schema that was applied."""

    __tablename__ = "schema_migrations"

    version: Mapped[str] = mapped_column(primary_key=True, comment="Version of the schema.")
    applied_at: Mapped[dt.datetime] = mapped_column(server_default=func.now(), comment="When the version was applied.")


@event.listens_for(metadata, "after_create")
def _comment_types(_: MetaData, connection: Connection, **__: Any) -> None:
    """Set the comments of the enum types, which SQLAlchemy does not create itself."""
    for kind, name in ENUM_TYPES.items():
        connection.exec_driver_sql(f"comment on type {name} is %s", (kind.__doc__,))
