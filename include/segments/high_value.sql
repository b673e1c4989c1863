-- Everybody who has ever ordered, with what they are worth; the canvas says how much is high.
SELECT customer_id, email, maid, lifetime_value, ads_tracking_enabled, do_not_sell_or_share, updated_at
FROM customers
WHERE orders > 0
