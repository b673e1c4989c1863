-- People who keep coming back; the canvas says how often and from where.
SELECT customer_id, email, orders, country, ads_tracking_enabled, do_not_sell_or_share, updated_at
FROM customers
WHERE orders > 1
