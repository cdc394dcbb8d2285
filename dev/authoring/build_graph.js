// Builds a plan (see graph.py) on the open canvas with the frontend's own nodes, and lays it out.
async ({ columns, sizes, gap, padding, view }) => {
  const { app, LiteGraph } = window
  const graph = app.graph
  const nodes = new Map()
  const settled = () => new Promise((resolve) => setTimeout(resolve, 20))

  const create = ({ id, type, title }) => {
    const node = LiteGraph.createNode(type)
    if (!node) throw new Error(`There is no node ${type}`)
    node.id = id
    if (title) node.title = title
    graph.add(node)
    nodes.set(id, node)
    return node
  }

  const setWidget = (node, name, value) => {
    const widget = node.widgets?.find((w) => w.name === name)
    if (!widget) throw new Error(`${node.type} has no widget ${name}, only ${node.widgets?.map((w) => w.name)}`)
    const options = widget.type === 'combo' && widget.options.values
    if (Array.isArray(options) && !options.includes(value)) throw new Error(`${node.type}.${name} does not offer ${value}`)
    widget.value = value
    widget.callback?.(value, app.canvas, node)
  }

  const connect = (node, name, link) => {
    const source = nodes.get(link.node)
    const [output, input] = [source.findOutputSlot(link.output), node.findInputSlot(name)]
    if (output < 0) throw new Error(`${source.type} has no output ${link.output}, only ${source.outputs.map((o) => o.name)}`)
    if (input < 0) throw new Error(`${node.type} has no input ${name}, only ${node.inputs.map((i) => i.name)}`)
    if (!source.connect(output, node, input)) throw new Error(`${source.type} ${link.output} does not fit ${node.type} ${name}`)
  }

  for (const spec of columns.flatMap((column) => column.nodes)) {
    const node = create(spec)
    for (const [name, value] of Object.entries(spec.inputs)) {
      if (value?.output === undefined) setWidget(node, name, value)
      else connect(node, name, value)
      await settled() // dynamic inputs appear after the one that they depend on
    }
  }
  await settled()

  // From left to right, the nodes of a column equally wide. A node's position is the corner under its title bar, whose height comes on top.
  const bar = LiteGraph.NODE_TITLE_HEIGHT
  let [x, right] = [0, 0]
  for (const column of columns) {
    const wishes = column.nodes.map(({ id, type, height }) => {
      const [least, wish] = [nodes.get(id).computeSize(), sizes[type] ?? sizes.default]
      return [Math.max(least[0], wish[0]), Math.max(least[1], wish[1], height)]
    })
    const width = Math.max(...wishes.map((wish) => wish[0]))
    let y = 0
    column.nodes.forEach(({ id }, i) => {
      const node = nodes.get(id)
      node.setSize([width, wishes[i][1]])
      node.pos = [x, y]
      y += node.size[1] + bar + gap / 2
    })
    if (column.title) {
      const group = new LiteGraph.LGraphGroup(column.title)
      const top = -bar - padding - group.titleHeight
      group.pos = [x - padding, top]
      group.size = [width + 2 * padding, y - bar - gap / 2 + 3 * padding - top]
      graph.add(group)
    }
    right = x + width
    x = right + gap
  }

  // What the page shows first: all of it, below the bars and right of the side bar of a window of view.width pixels.
  const scale = Math.min(view.zoom, (view.width - 2 * view.left) / right)
  app.canvas.ds.scale = scale
  app.canvas.ds.offset = [view.left / scale, view.top / scale]
}
