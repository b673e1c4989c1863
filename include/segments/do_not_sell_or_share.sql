-- Everybody who has said whether their data may be sold or shared, as they say it now.
SELECT customer_id, do_not_sell_or_share, updated_at
FROM customers
WHERE do_not_sell_or_share IS NOT NULL
