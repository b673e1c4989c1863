-- People who ordered within the last two weeks.
SELECT customer_id, email, maid, ads_tracking_enabled, do_not_sell_or_share, updated_at
FROM customers
WHERE last_order_on >= date('now', '-14 days')
