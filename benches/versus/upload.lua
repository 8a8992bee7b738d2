-- A body of so many bytes: wrk -s upload.lua URL -- BYTES
function init(arguments)
   wrk.method = "POST"
   wrk.body = string.rep("x", tonumber(arguments[1]))
end
