-- What became of a transaction that `lead` leads, by the record beside the stream: the server's time in ms, or why it was
-- refused. Where the record is of an earlier one, the server has refused the transaction as a whole.
-- KEYS: record of this publisher's last transaction. ARGV: name of the transaction.
local name, what = string.match(redis.call('GET', KEYS[1]) or '', '^(%d+) (.*)$')
if name ~= ARGV[1] then
  return redis.error_reply('EXECABORT the transaction was refused')
end
return tonumber(what) or redis.error_reply(what)
