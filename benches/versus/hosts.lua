-- Goes through the hosts one after another: wrk -s hosts.lua URL -- COUNT
local requests, last, number = {}, 1, 0

function init(arguments)
   last = tonumber(arguments[1])
   for index = 1, last do
      requests[index] = wrk.format("GET", "/", { Host = "host-" .. (index - 1) .. ".test" })
   end
end

function request()
   number = number % last + 1
   return requests[number]
end
