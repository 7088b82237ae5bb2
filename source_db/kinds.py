"""The kinds and states that the shop distinguishes: the labels of its enum types.

The docstring of a class is the comment of its type in the database.
"""

from __future__ import annotations

import enum


class CustomerTier(enum.StrEnum):
    """Loyalty tier of a customer, lowest first."""

    BRONZE = "bronze"
    SILVER = "silver"
    GOLD = "gold"
    PLATINUM = "platinum"


class SalesChannel(enum.StrEnum):
    """Where an order or an event came from."""

    WEB = "web"
    MOBILE = "mobile"
    STORE = "store"
    MARKETPLACE = "marketplace"


class CampaignChannel(enum.StrEnum):
    """Where a campaign runs."""

    EMAIL = "email"
    SEARCH = "search"
    SOCIAL = "social"
    AFFILIATE = "affiliate"


class OrderStatus(enum.StrEnum):
    """States of an order: cart, placed, paid, shipped, delivered; or cancelled, returned."""

    CART = "cart"
    PLACED = "placed"
    PAID = "paid"
    SHIPPED = "shipped"
    DELIVERED = "delivered"
    CANCELLED = "cancelled"
    RETURNED = "returned"


class PaymentMethod(enum.StrEnum):
    """How a payment was made."""

    CARD = "card"
    PAYPAL = "paypal"
    BANK_TRANSFER = "bank_transfer"
    GIFT_CARD = "gift_card"


class PaymentStatus(enum.StrEnum):
    """States of a payment; a refund is a separate payment with a negative amount."""

    AUTHORIZED = "authorized"
    CAPTURED = "captured"
    FAILED = "failed"
    REFUNDED = "refunded"


class EventType(enum.StrEnum):
    """Steps of a visit to the shop, in the order of the funnel."""

    PAGE_VIEW = "page_view"
    PRODUCT_VIEW = "product_view"
    ADD_TO_CART = "add_to_cart"
    CHECKOUT = "checkout"
    PURCHASE = "purchase"
