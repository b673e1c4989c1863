-- People who have not ordered of late, and whether they opened the last message.
SELECT customer_id, email, maid, opened_last_message, ads_tracking_enabled, do_not_sell_or_share, updated_at
FROM customers
WHERE last_order_on IS NULL OR last_order_on < date('now', '-14 days')
